"""From the values of a form to the arguments of the stages that plan a run."""

import difflib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import Context

from retro_airflow import failures, object_store
from retro_airflow.deployment import check_resources
from retro_airflow.forms import CHOICE, PRESETS, form
from retro_airflow.settings import load
from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.name_lists import join_names
from retro_ops.plan.parameters import LONGEST_TEXT, PARAMETERS, SHOWN
from retro_ops.plan.plan import plan_from_json
from retro_ops.sizes import parse_bytes

VERBATIM = ("embed_prompt",)
"""Texts whose blanks count, and whose empty text is a value."""

DOCUMENTS = ("corpus", "validation_corpus", "recipe", "source_folder")
"""Fields with the location of documents."""


def plan_arguments(context: Context, jinja_env: Any = None) -> dict[str, str | None]:
    """Arguments of the ``plan`` stage for the run in ``context``; called when the template field is rendered."""
    run = context["dag_run"]
    conf = run.conf or {}
    check_names(conf, context["dag"].params)
    with failures.airflow_errors():
        params = clean(context["params"])
        if "corpus" in conf and "validation_corpus" not in conf:
            # The default belongs to the default corpus. The form in the UI sends both fields, a REST call may not.
            params["validation_corpus"] = None
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
        return {**_sources_arguments(params, run.run_id), "refresh": True, "unset": _unset(params)}


def _sources_arguments(params: Mapping[str, Any], run_id: str) -> dict[str, str | bool | None]:
    root, dataset = _place(params)
    given = {name: params.get(name) for name in ("on_bad_record", "max_bad_share", "memory_budget", "longest_line")}
    return {
        "recipe": params["recipe"],
        "source-folder": params["source_folder"],
        "root": root,
        "dataset": dataset,
        "output": paths.sources_uri(root, dataset, run_id),
        **{name.replace("_", "-"): str(value) for name, value in given.items() if value is not None},
    }


def _unset(params: Mapping[str, Any]) -> str | None:
    return join_names(params["unset"] or []) or None


def _has_recipe(params: Mapping[str, Any], root: str, dataset: str) -> bool:
    """Whether a refresh has a recipe: its own or, unless the form names a corpus, that of the published version.

    BadInputError if it would use a relative path of that version, which was then built on a command line.
    """
    from retro_ops.storage import store

    if params["recipe"]:
        return True
    series = object_store.read_series(root, dataset)
    if not series.current:
        return False
    uri = series.plan_uri()
    published = plan_from_json(store.read(uri), uri)
    for name in ("validation_corpus",) if params["corpus"] else DOCUMENTS:
        if not params[name]:
            _check_full_path(name, getattr(published, name), " of the published version")
    if not params["benchmarks"] and "benchmarks" not in (params["unset"] or []):
        _check_full_path("benchmarks", published.parameters.benchmarks, " of the published version")
    return published.recipe is not None and not params["corpus"]


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
            chosen |= {name: params[name] for name in CHOICE}
        else:  # The first version: empty fields have the values of the form for a new dataset.
            settings = load()
            blank = {name: param.value for name, param in form(settings).items()}
            if (root, dataset) != ((settings.root or "").rstrip("/"), settings.dataset):
                blank |= {"corpus": None, "validation_corpus": None}
            elif params["corpus"]:
                blank["validation_corpus"] = None  # It belongs to the deployment's corpus.
            chosen = arguments(blank | {name: value for name, value in params.items() if value is not None}, run.run_id)
        if _has_recipe(params, root, dataset):
            chosen |= {"corpus": None, "validation-corpus": None}
            chosen["sources"] = paths.sources_uri(root, dataset, run.run_id)
        output = paths.plan_uri(root, dataset, run.run_id)
        return {
            **chosen,
            "root": root,
            "dataset": dataset,
            "as-of": params["as_of"] or _day(context),
            "output": output,
            "refresh": True,
            "unset": _unset(params),
        }


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
    """Root and dataset. BadInputError for a root without a bucket, and for a relative path in any field."""
    root = str(params["root"])
    if root.endswith("://"):
        raise BadInputError(f"root {root!r} names no bucket", "enter s3://bucket/prefix")
    for name in ("root", *DOCUMENTS, "benchmarks", "tokenizer", "model"):
        _check_full_path(name, params.get(name))
    return root.rstrip("/"), str(params["dataset"])


def _check_full_path(name: str, value: str | None, whose: str = "") -> None:
    """BadInputError for a relative path, which names another file on each worker and in each container.

    A name without slash and dot is a recipe of the package; a tokenizer or model may be a name on the hub, and only
    what begins with a dot or a tilde is none.
    """
    if not value or value.startswith("/") or "://" in value:
        return
    if name in ("tokenizer", "model") and not value.startswith((".", "~")):
        return
    if name == "recipe" and not {".", "/"} & set(value):
        return
    raise BadInputError(
        f"{name} {value!r}{whose} is a relative path, which depends on where a task runs",
        f"enter a full path or a URL such as s3://bucket/prefix as {name}",
    )


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
        **{name: params[name] for name in CHOICE},
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
