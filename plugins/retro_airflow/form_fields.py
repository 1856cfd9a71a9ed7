"""The fields of the trigger forms."""

import re
from collections.abc import Iterable
from typing import Any, get_args

from airflow.sdk import Param

from retro_airflow.deployment import RuntimeName
from retro_airflow.settings import Settings
from retro_ops.plan.parameters import INDEX, PARAMETERS, RUN, Parameter, Section

AS_PUBLISHED = "as in the published version"

RECIPE = "Recipe instead of a corpus"
"""Section of the fields of a recipe."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "choice": {"type": "string"},
    "memory": {"type": "string", "pattern": r"^\d+(\.\d+)? ?([kKMGT]i?B?|B)?$"},
}
"""JSON schema of a field by the kind of its parameter."""


def recipe_fields() -> dict[str, Param]:
    return {
        "recipe": optional_text(
            None,
            "Recipe",
            "Instead of a corpus: a YAML file (`s3://` or a full path) that lists source files and defines the "
            "category, the split and the shard of each document; or the name of a recipe of this package.",
            RECIPE,
        ),
        "source_folder": optional_text(
            None,
            "Source folder",
            "Folder of the relative paths in the recipe. Empty: the folder of the recipe.",
            RECIPE,
        ),
    }


def plan_only() -> Param:
    return field(
        False,
        "Plan only",
        "Check the form and the corpus, estimate chunks and time, and stop. The note of the run has the result.",
        type="boolean",
    )


def dataset_fields(settings: Settings) -> dict[str, Param]:
    """A field for each parameter with a title, and the choice of shards, section by section."""
    # An empty index type depends on the preset.
    defaults = {"tokenizer": settings.tokenizer, "model": settings.model, "index_type": None}
    return _by_section(
        parameter_field(
            parameter, defaults.get(parameter.name, parameter.default), parameter.unset or "as in the preset"
        )
        for parameter in PARAMETERS.values()
        if parameter.title and not parameter.refresh_only
    )


def refresh_fields() -> dict[str, Param]:
    """The fields of ``dataset_fields`` for a refresh; all of them may be empty."""
    fields = (
        parameter_field(parameter, None, AS_PUBLISHED if parameter.kept_on_refresh else parameter.unset or "automatic")
        for parameter in PARAMETERS.values()
        if parameter.title
    )
    return _by_section(fields, f"{AS_PUBLISHED}; `*`: all")


def unset() -> Param:
    """The field of a refresh with the parameters that do not keep their published value."""
    titles = {
        name: parameter.title
        for name, parameter in PARAMETERS.items()
        # Tokenizer and model have the deployment's own defaults on the form of a new dataset.
        if parameter.title and parameter.kept_on_refresh and name not in ("tokenizer", "model")
    }
    return field(
        None,
        "Back to default",
        "Parameters that take their default again instead of the value of the published version.",
        type=["null", "array"],
        items={"type": "string", "enum": list(titles)},
        examples=list(titles),
        values_display=titles,
        section=RUN,
    )


def _by_section(fields: Iterable[tuple[str, Param]], no_choice: str = "all") -> dict[str, Param]:
    """``no_choice``: the shards of empty fields."""
    order = list(get_args(Section))
    found = [*fields, *shard_choice_fields(no_choice).items()]
    return dict(sorted(found, key=lambda entry: order.index(entry[1].schema["section"])))


def parameter_field(parameter: Parameter, default: Any, empty: str) -> tuple[str, Param]:
    """Name and field of ``parameter``. ``empty``: meaning of an empty field, if ``default`` is None."""
    schema: dict[str, Any] = dict(SCHEMAS[parameter.kind])
    bounds = {"minimum": parameter.minimum, "maximum": parameter.maximum}
    schema |= {key: value for key, value in bounds.items() if value is not None}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    help_text = parameter.meaning
    if default is None:
        schema["type"] = ["null", schema["type"]]
        schema.pop("minLength", None)
        schema |= with_empty(parameter.choices, empty) if parameter.choices else {}
        help_text += f" Empty: {empty}."
    return parameter.name, field(default, str(parameter.title), help_text, section=parameter.section, **schema)


def shard_choice_fields(empty: str) -> dict[str, Param]:
    return {
        "indexed": optional_text(
            None,
            "Indexed shards",
            f"Name patterns of the shards whose chunks are in the index, such as `{{00..19}}_*`. Empty: {empty}.",
            INDEX,
        ),
        "queried": optional_text(
            None,
            "Queried shards",
            f"Name patterns of the shards whose chunks get neighbours, such as `{{00..08}}_*,val_*`. Empty: {empty}.",
            INDEX,
        ),
    }


def run_fields(settings: Settings) -> dict[str, Param]:
    return {
        "runtime": field(
            None,
            "Runtime",
            "Where the stages of this run are executed. Empty: as in `runtime.toml`.",
            type=["null", "string"],
            **with_empty(get_args(RuntimeName), "as in runtime.toml"),
            section=RUN,
        ),
        "resources": field(
            None,
            "Resources",
            "Overrides of the resources in `runtime.toml`, by stage or for `default`, such as "
            '`{"embed-chunks": {"gpus": 1, "memory": "16GiB"}}`.',
            type=["null", "object"],
            section=RUN,
        ),
        "allow_partial": field(
            False,
            "Go on without failed shards",
            "Publish a version without the shards that failed. Off: a failed shard stops the run at `gate`, whose log "
            "says how to fix it.",
            type="boolean",
            section=RUN,
        ),
        "approve": field(
            settings.approve,
            "Approve before publishing",
            "Wait at the task `publish.approve` until a person approves or rejects the version. Off: publish at once.",
            type="boolean",
            section=RUN,
        ),
    }


def with_empty(choices: Iterable[str], empty: str) -> dict[str, Any]:
    """Schema of a choice that may be empty; ``empty`` is shown for None."""
    chosen = list(choices)
    return {"enum": [None, *chosen], "values_display": {"null": empty, **{name: name for name in chosen}}}


def field(default: Any, title: str, help_text: str, **schema: Any) -> Param:
    return Param(default, title=title, description_md=plain(help_text), **schema)


def plain(help_text: str) -> str:
    """``help_text`` without code marks, which in Airflow's forms cover the lines above and below."""

    def unmarked(code: re.Match[str]) -> str:
        text = re.sub(r"([*_])", r"\\\1", code[1])
        return f'"{text}"' if text != text.strip() else text

    return re.sub("`([^`]*)`", unmarked, help_text)


def text(default: str | None, title: str, help_text: str, section: str | None = None, **schema: Any) -> Param:
    """A text that must not be empty; without a default it must be filled in before the form can be sent."""
    value: dict[str, Any] = {} if default is None else {"default": default}
    schema |= {"type": "string", "minLength": 1, **_section(section)}
    return Param(**value, title=title, description_md=plain(help_text), **schema)


def optional_text(default: str | None, title: str, help_text: str, section: str | None = None, **schema: Any) -> Param:
    # Empty is None, not "": an empty string disables the Trigger button.
    return field(default, title, help_text, type=["null", "string"], **_section(section), **schema)


def as_published(of_form: Param) -> Param:
    """A field on the form of a refresh, where it may be empty."""
    help_text = of_form.schema["description_md"].partition(" Empty: ")[0]
    return Param(None, **{**of_form.schema, "description_md": f"{help_text} Empty: {AS_PUBLISHED}."})


def choice(default: str, of: list[str], title: str, help_text: str, section: str | None = None) -> Param:
    return field(default, title, help_text, type="string", enum=of, **_section(section))


def _section(section: str | None) -> dict[str, Any]:
    return {} if section is None else {"section": section}
