"""The trigger form and the arguments of the ``plan`` stage that follow from it, in one place."""

import difflib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Context, Param

from retro_airflow import failures, form_fields, object_store
from retro_airflow.deployment import check_resources
from retro_airflow.settings import Settings, load
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan import paths
from retro_ops.plan.name_lists import join_names
from retro_ops.plan.parameters import LONGEST_TEXT, PARAMETERS, SHOWN
from retro_ops.plan.plan import NAME_PATTERN, plan_from_json
from retro_ops.sizes import parse_bytes

PRESETS: dict[str, dict[str, str]] = {
    "tiny": {"index_type": "IVF64,Flat"},
    "standard": {"index_type": "auto"},
    "original": {"index_type": "IVF131072,PQ32"},
}
"""Values of fields that are left empty, by preset; other fields have the default of their parameter."""

VERBATIM = ("embed_prompt",)
"""Texts whose blanks count, and whose empty text is a value."""

PRESET_HELP = (
    "**standard**: any size, on CPUs or GPUs; the index type follows from the number of chunks. "
    "**tiny**: a trial with 2,500 to some 100,000 chunks, minutes on a laptop (`IVF64,Flat`). "
    "**original**: the index of the original scripts (`IVF131072,PQ32`), from 5 million chunks on; train it on a GPU."
)

_CHOICE = ("indexed", "queried")
_HOW_IT_RUNS = ("runtime", "resources", "allow_partial", "approve")


def _dataset(default: str | None) -> Param:
    help_text = "Name of the dataset: letters, digits, dots, dashes and underscores."
    return form_fields.text(default, "Dataset", help_text, pattern=f"^{NAME_PATTERN}$")


def form(settings: Settings) -> dict[str, Param]:
    """Fields of the trigger form. Those without a section are always open, at the top."""
    return {
        "dataset": _dataset(settings.dataset),
        "root": form_fields.text(settings.root, "Root", "Location of all datasets: a folder or `s3://bucket/prefix`."),
        "corpus": form_fields.optional_text(
            settings.corpus,
            "Corpus",
            "Documents to train on: a folder or a glob of `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` files. "
            "Each file becomes a shard. Ignored if there is a recipe.",
        ),
        "validation_corpus": form_fields.optional_text(
            settings.validation_corpus,
            "Validation corpus",
            "Documents to validate on. Their neighbours come from training and validation documents; those of training "
            "documents never come from them.",
        ),
        "preset": form_fields.choice("standard", list(PRESETS), "Preset", PRESET_HELP),
        "plan_only": form_fields.plan_only(),
        **form_fields.recipe_fields(),
        **form_fields.dataset_fields(settings),
        **form_fields.run_fields(settings),
    }


def massive_open_text_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of `massive_open_text`: those of a dataset, with the recipe filled in."""
    whole = form(settings)
    return {
        # Not the dataset of the deployment, which is another one.
        "dataset": _dataset("MassiveOpenText"),
        "root": whole["root"],
        "source_folder": form_fields.text(
            None, "Source folder", "Folder that holds `Pile/` and `RealNews/`: a full path or `s3://bucket/prefix`."
        ),
        "recipe": form_fields.text(
            "massive_open_text",
            "Recipe",
            "`massive_open_text` is a recipe of this package. For an edited copy, such as one with other queried "
            "shards, enter its full path.",
        ),
        "preset": form_fields.choice("original", list(PRESETS), "Preset", PRESET_HELP),
        "plan_only": whole["plan_only"],
        **{name: whole[name] for name in (*PARAMETERS, *_CHOICE, *_HOW_IT_RUNS) if name in whole},
    }


def refresh_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of a refresh. Most that are left empty keep the value of the published version."""
    set_by = {"RETRO_REFRESH_SCHEDULE": settings.refresh_schedule, "RETRO_REFRESH_WATCH": settings.refresh_watch}
    if any(set_by.values()) and not (settings.root and settings.dataset):
        raise ConfigurationError(
            f"{next(name for name, value in set_by.items() if value)} is set, but a run that it starts has no form "
            "for the dataset",
            "set RETRO_ROOT and RETRO_DATASET as well",
        )
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        # Not the corpus of the deployment: another dataset would be filled with it.
        "corpus": form_fields.optional_text(
            None,
            "Corpus",
            "A folder or a glob, as for a new dataset. `{date}` matches a day, as in "
            "`s3://bucket/corpus/{date}/*.jsonl.zst`, and a run for a day leaves out files of later days. "
            f"Empty: {form_fields.AS_PUBLISHED}.",
        ),
        "validation_corpus": form_fields.optional_text(
            None,
            "Validation corpus",
            f"A folder or a glob, with `{{date}}` if needed. Empty: {form_fields.AS_PUBLISHED}.",
        ),
        "as_of": form_fields.optional_text(
            None,
            "As of",
            "Leave out files of days after this one, written as 2026-03-31. Empty: the day of a scheduled run or a "
            "backfill, if any.",
            pattern=r"^\d{4}-\d{2}-\d{2}$",
        ),
        "plan_only": whole["plan_only"],
        **{name: form_fields.as_published(param) for name, param in form_fields.recipe_fields().items()},
        **form_fields.refresh_fields(),
        **{name: whole[name] for name in _HOW_IT_RUNS},
    }


def repair_form(settings: Settings) -> dict[str, Param]:
    """Fields of the form of a repair."""
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "shards": form_fields.field(
            None,
            "Shards",
            "Shards to rebuild even if their files are intact, one per line. Empty: all shards that failed or whose "
            "files are missing or damaged.",
            type=["null", "array"],
            items={"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        ),
        "run": form_fields.optional_text(
            None,
            "Run",
            "Run id of a failed run, such as `scheduled__2026-01-01T03:00:00+00:00`. Empty: the published version.",
        ),
        "quick": form_fields.field(
            False,
            "Compare lengths only",
            "Check only the lengths of files. Off: read every file and compare its checksum.",
            type="boolean",
        ),
        "plan_only": whole["plan_only"],
        **{name: whole[name] for name in _HOW_IT_RUNS},
    }


def rollback_form(settings: Settings) -> dict[str, Param]:
    whole = form(settings)
    version = "Number of the version to make current; it may also be a later one."
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "version": Param(type="integer", minimum=1, title="Version", description_md=version),
        **{name: whole[name] for name in ("runtime", "resources")},
    }


def prune_form(settings: Settings) -> dict[str, Param]:
    whole = form(settings)
    return {
        "dataset": whole["dataset"],
        "root": whole["root"],
        "keep": form_fields.field(
            7,
            "Versions to keep",
            "Number of newest versions to keep, besides the current one.",
            type="integer",
            minimum=1,
        ),
        "remove": form_fields.field(
            False, "Remove", "Remove what is listed. Off: only list it in the log.", type="boolean"
        ),
        **{name: whole[name] for name in ("runtime", "resources")},
    }


def plan_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | None]:
    """Arguments of the ``plan`` stage for the run in ``context``; called when the template field is rendered."""
    run = context["dag_run"]
    check_names(run.conf or {}, context["dag"].params)
    with failures.airflow_errors():
        params = clean(context["params"])
        check_resources(params["resources"] or {}, "the trigger form")
        return arguments(params, run.run_id)


def sources_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``list-sources``; empty if the form has no recipe."""
    run = context["dag_run"]
    with failures.airflow_errors():
        params = clean(context["params"])
        if not params.get("recipe"):
            return {}
        check_names(run.conf or {}, context["dag"].params)
        return _sources_arguments(params, run.run_id)


def refresh_sources_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``list-sources`` for a refresh, which uses the recipe of the form or of the published version."""
    run = context["dag_run"]
    with failures.airflow_errors():
        params = clean(context["params"])
        object_store.use_connection(load().deployment.object_store.connection)
        root, dataset = _place(params)
        if not _has_recipe(params, root, dataset):
            return {}
        check_names(run.conf or {}, context["dag"].params)
        return {**_sources_arguments(params, run.run_id), "refresh": True}


def _sources_arguments(params: Mapping[str, Any], run_id: str) -> dict[str, str | bool | None]:
    root, dataset = _place(params)
    # A bare name is a recipe of the package.
    file = params["recipe"] if "." in (params["recipe"] or "") or "/" in (params["recipe"] or "") else None
    for name, path in (("recipe", file), ("source_folder", params["source_folder"])):
        if path and "://" not in path and not path.startswith("/"):
            raise BadInputError(f"{name} {path!r} is a relative path", "enter a full path or s3://…")
    given = {name: params.get(name) for name in ("on_bad_record", "max_bad_share", "memory_budget")}
    return {
        "recipe": params["recipe"],
        "source-folder": params["source_folder"],
        "root": root,
        "dataset": dataset,
        "output": paths.sources_uri(root, dataset, run_id),
        **{name.replace("_", "-"): str(value) for name, value in given.items() if value is not None},
    }


def _has_recipe(params: Mapping[str, Any], root: str, dataset: str) -> bool:
    """Whether a refresh has a recipe: its own or, unless the form names a corpus, that of the published version."""
    from retro_ops.storage import store

    if params["recipe"] or params["corpus"]:
        return bool(params["recipe"])
    series = object_store.read_series(root, dataset)
    if not series.current:
        return False
    uri = series.plan_uri()
    return plan_from_json(store.read(uri), uri).recipe is not None


def refresh_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``plan`` for a refresh: the fields that are set on the form, and the day of the run."""
    from retro_ops.storage import store

    run = context["dag_run"]
    check_names(run.conf or {}, context["dag"].params)
    with failures.airflow_errors():
        params = clean(context["params"])
        check_resources(params["resources"] or {}, "the trigger form")
        object_store.use_connection(load().deployment.object_store.connection)
        root, dataset = _place(params)
        chosen: dict[str, str | None]
        if store.exists(paths.current_uri(root, dataset)):
            given = {name: params[name] for name in PARAMETERS if params.get(name) is not None}
            chosen = {name.replace("_", "-"): str(value) for name, value in given.items()}
            chosen |= {"corpus": params["corpus"], "validation-corpus": params["validation_corpus"]}
            chosen |= {name: params[name] for name in _CHOICE}
        else:  # The first version: empty fields have the values of the form for a new dataset.
            settings = load()
            blank = {name: param.value for name, param in form(settings).items()}
            if (root, dataset) != ((settings.root or "").rstrip("/"), settings.dataset):
                blank |= {"corpus": None, "validation_corpus": None}
            chosen = arguments(blank | {name: value for name, value in params.items() if value is not None}, run.run_id)
        if _has_recipe(params, root, dataset):
            chosen |= {"corpus": None, "validation-corpus": None}
            chosen["sources"] = paths.sources_uri(root, dataset, run.run_id)
        output = paths.plan_uri(root, dataset, run.run_id)
        as_of = params["as_of"] or _day(context)
        return {**chosen, "root": root, "dataset": dataset, "as-of": as_of, "output": output, "refresh": True}


def repair_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``plan`` for a repair."""
    run = context["dag_run"]
    check_names(run.conf or {}, context["dag"].params)
    with failures.airflow_errors():
        params = clean(context["params"])
        check_resources(params["resources"] or {}, "the trigger form")
        root, dataset = _place(params)
    return {
        "root": root,
        "dataset": dataset,
        "output": paths.plan_uri(root, dataset, run.run_id),
        "repair": True,
        "run": params["run"],
        "shards": join_names(params["shards"] or []) or None,
        "quick": params["quick"],
    }


def clean(params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a form or of a run's conf: ``64.0`` for a whole number is 64, texts have no blanks around them, and
    an empty text is an empty field, as templates and `TriggerDagRunOperator` leave it.

    BadInputError for a text that no field can have.
    """
    return {name: _clean(name, value) for name, value in params.items()}


def _clean(name: str, value: Any) -> Any:
    parameter = PARAMETERS.get(name)
    if isinstance(value, float) and parameter and parameter.kind == "integer" and value.is_integer():
        return int(value)
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            raise BadInputError(
                f"{name} is {value[:SHOWN]!r}", f"give at most {LONGEST_TEXT:,} characters, without NUL"
            )
        if name not in VERBATIM:
            return value.strip() or None
    return value


def rollback_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``rollback``."""
    params, place = _of_dataset(context)
    return {**place, "to": str(params["version"])}


def prune_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | bool | None]:
    """Arguments of ``prune``."""
    params, place = _of_dataset(context)
    return {**place, "keep": str(params["keep"]), "yes": params["remove"]}


def _of_dataset(context: Context) -> tuple[dict[str, Any], dict[str, str | bool | None]]:
    """The values of the form of a run without a plan, and the flags that name its dataset."""
    check_names(context["dag_run"].conf or {}, context["dag"].params)
    with failures.airflow_errors():
        params = clean(context["params"])
        check_resources(params["resources"] or {}, "the trigger form")
        root, dataset = _place(params)
    return params, {"root": root, "dataset": dataset}


def _day(context: Context) -> str | None:
    """Day of a scheduled run or a backfill: the last whole day of its interval."""
    run = context["dag_run"]
    if run.run_type not in ("scheduled", "backfill") or not run.data_interval_end:
        return None
    return str(run.data_interval_end.astimezone(ZoneInfo(load().timezone)).date() - timedelta(days=1))


def _place(params: Mapping[str, Any]) -> tuple[str, str]:
    """Root and dataset. Raises BadInputError for a relative root, which depends on where a worker was started."""
    root = str(params["root"]).rstrip("/")
    if not root.startswith("/") and "://" not in root:
        raise BadInputError(f"root {root!r} is a relative path", "enter a full path or s3://…")
    return root, str(params["dataset"])


def arguments(params: Mapping[str, Any], run_id: str) -> dict[str, str | None]:
    """Form values -> flags of ``plan``. An empty field has the value of the preset, else that of ``Parameters``."""
    parse_bytes(params["memory_budget"])
    preset = PRESETS[params["preset"]]
    root, dataset = _place(params)
    documents: dict[str, str | None]
    if params["recipe"]:
        documents = {"sources": paths.sources_uri(root, dataset, run_id)}
    else:
        documents = {"corpus": params["corpus"], "validation-corpus": params["validation_corpus"] or None}
    chosen: dict[str, str | None] = {
        "root": root,
        "dataset": dataset,
        **documents,
        **{name: params[name] for name in _CHOICE},
        "output": paths.plan_uri(root, dataset, run_id),
    }
    for name in PARAMETERS:
        value = params.get(name)
        if value is None:
            value = preset.get(name, PARAMETERS[name].default)
        if value is not None and not isinstance(value, bool):
            chosen[name.replace("_", "-")] = str(value)
    return chosen


def check_names(conf: Mapping[str, Any], known: Any) -> None:
    """Raise FinalFailureError for an unknown key in a run's conf, which Airflow would ignore silently."""
    for name in conf:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"the form has: {', '.join(known)}."
            raise failures.FinalFailureError(f"unknown parameter {name!r}: {meant} Fix it and trigger the run again")
