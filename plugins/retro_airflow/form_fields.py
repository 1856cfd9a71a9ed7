"""The fields of the trigger forms, and what makes them."""

from collections.abc import Iterable
from typing import Any, get_args

from airflow.sdk import Param

from retro_airflow.deployment import RuntimeName
from retro_airflow.settings import Settings
from retro_ops.plan.parameters import INDEX, PARAMETERS, RUN, Parameter, Section

AS_PUBLISHED = "as in the published version"

SCHEMAS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "choice": {"type": "string"},
    "memory": {"type": "string", "pattern": r"^\d+(\.\d+)? ?([kKMGT]i?B?|B)?$"},
}
"""JSON schema of a field, by the kind of its parameter."""


def recipe_fields() -> dict[str, Param]:
    return {
        "recipe": optional_text(
            None,
            "Recipe",
            "Instead of a corpus: a file (YAML, `s3://` or a full path) that says which documents there are, what each "
            "is, and which shards they become; or the name of one that comes with the package.",
        ),
        "source_folder": optional_text(
            None, "Source folder", "Where the relative paths of the recipe start. Empty: in the recipe's own folder."
        ),
    }


def dataset_fields(settings: Settings) -> dict[str, Param]:
    """A field for each parameter that has a title, and the choice of shards, section by section."""
    # Empty means something else for each preset.
    defaults = {"tokenizer": settings.tokenizer, "model": settings.model, "index_type": None}
    return _by_section(
        parameter_field(
            parameter, defaults.get(parameter.name, parameter.default), parameter.unset or "as in the preset"
        )
        for parameter in PARAMETERS.values()
        if parameter.title and not parameter.refresh_only
    )


def refresh_fields() -> dict[str, Param]:
    """The same fields for a refresh, all of which may stay empty."""
    return _by_section(
        parameter_field(parameter, None, AS_PUBLISHED if parameter.kept_on_refresh else parameter.unset or "automatic")
        for parameter in PARAMETERS.values()
        if parameter.title
    )


def _by_section(fields: Iterable[tuple[str, Param]]) -> dict[str, Param]:
    order = list(get_args(Section))
    found = [*fields, *shard_choice_fields().items()]
    return dict(sorted(found, key=lambda entry: order.index(entry[1].schema["section"])))


def parameter_field(parameter: Parameter, default: Any, empty: str) -> tuple[str, Param]:
    """Name and field of ``parameter``. ``empty``: what an empty field stands for, where ``default`` is None."""
    schema: dict[str, Any] = dict(SCHEMAS[parameter.kind])
    bounds = {"minimum": parameter.minimum, "maximum": parameter.maximum}
    schema |= {key: value for key, value in bounds.items() if value is not None}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    help_text = parameter.meaning
    if default is None:
        schema["type"] = ["null", schema["type"]]
        schema.pop("minLength", None)
        schema |= {"enum": [None, *schema["enum"]]} if parameter.choices else {}
        help_text += f" Empty: {empty}."
    field = Param(default, title=parameter.title, description_md=help_text, section=parameter.section, **schema)
    return parameter.name, field


def shard_choice_fields() -> dict[str, Param]:
    return {
        "indexed": optional_text(
            None,
            "Indexed shards",
            "Patterns of the names of the shards whose chunks are in the index, such as `{00..19}_*`. Empty: all.",
            INDEX,
        ),
        "queried": optional_text(
            None,
            "Queried shards",
            "Patterns of the names of the shards whose chunks get neighbours, such as `{00..08}_*,val_*`. Empty: all.",
            INDEX,
        ),
    }


def run_fields() -> dict[str, Param]:
    return {
        "runtime": Param(
            None,
            type=["null", "string"],
            enum=[None, *get_args(RuntimeName)],
            title="Runtime",
            description_md="Where the stages of this run are run. Empty: as the deployment says (`runtime.toml`).",
            section=RUN,
        ),
        "resources": Param(
            None,
            type=["null", "object"],
            title="Resources",
            description_md="Changes to the deployment's resources, by stage or for `default`, such as "
            '`{"embed-chunks": {"gpus": 1, "memory": "16GiB"}}`.',
            section=RUN,
        ),
        "allow_partial": Param(
            False,
            type="boolean",
            title="Go on without failed shards",
            description_md="Off: a failed shard stops the run at the `gate`, which says how to mend it.",
            section=RUN,
        ),
    }


def text(default: str | None, title: str, help_text: str, section: str | None = None, **schema: Any) -> Param:
    """A text that must not be empty; without a default the form asks for one before it can be sent."""
    value: dict[str, Any] = {} if default is None else {"default": default}
    return Param(
        **value, type="string", minLength=1, title=title, description_md=help_text, **_section(section), **schema
    )


def optional_text(default: str | None, title: str, help_text: str, section: str | None = None) -> Param:
    # Not "" for nothing: an empty string greys out the Trigger button.
    return Param(default, type=["null", "string"], title=title, description_md=help_text, **_section(section))


def as_published(field: Param) -> Param:
    """An optional field on the form of a refresh."""
    help_text = field.schema["description_md"].partition(" Empty: ")[0]
    return Param(None, **{**field.schema, "description_md": f"{help_text} Empty: {AS_PUBLISHED}."})


def choice(default: str, of: list[str], title: str, help_text: str, section: str | None = None) -> Param:
    return Param(default, type="string", enum=of, title=title, description_md=help_text, **_section(section))


def _section(section: str | None) -> dict[str, Any]:
    return {} if section is None else {"section": section}
