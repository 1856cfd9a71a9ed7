"""The small tasks between the stages. They read plans and reports, never large data."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context

from retro_airflow import failures, links, metrics, object_store, run_notes, runtimes, settings, task_states
from retro_airflow.failures import FinalFailureError
from retro_airflow.mapped_tasks import read_plan, shards_in
from retro_airflow.runtimes import Task
from retro_airflow.task_states import STARTING_OR_RUNNING, UNDECIDED
from retro_ops.errors import BadInputError
from retro_ops.plan import estimate, paths
from retro_ops.plan.plan import Shard, check_choice, plan_to_json
from retro_ops.plan.published_changes import check_removed, read_changes
from retro_ops.sizes import counted, some

MOST_NAMES = 100
"""Most shards of each kind that an asset event names; it counts all of them."""

MOST_SHOWN = 20
"""Most shards that a message names."""

MOST_CAUSES = 3
"""Most shards of which the gate shows why they failed."""

SHARD_TASKS = ("shards.tokenize_and_chunk", "shards.embed_chunks")

DATASETS = AssetAlias("retro-datasets")
"""Through this alias every published dataset becomes an asset of its own."""


def look_for_duplicates(plan_uri: str) -> bool:
    """Whether documents must be compared with others or with benchmark texts. If not, the other tasks of the group are
    skipped."""
    plan = read_plan(plan_uri)
    return plan.parameters.compares_documents and not plan.deduplicated


def goes_beyond_plan(plan_uri: str, params: Mapping[str, Any], ti: Any) -> bool:
    """Whether the run continues after its plan. If not, all later tasks are skipped, and the note has the estimate."""
    from retro_ops.storage import store

    if not params.get("plan_only"):
        return True
    plan = read_plan(plan_uri)
    uri = paths.estimate_uri(plan_uri)
    with failures.airflow_errors():
        expected = estimate.read_estimate(store.read(uri), uri) if store.exists(uri) else None
    about = f": about {expected['chunks']['all']:,} chunks; {_work(expected['seconds'])}" if expected else ""
    found = f"planned only, {counted(len(plan.shards), 'shard')}{about}"
    print(f"{plan.dataset}: {found}")
    ti.xcom_push(key=run_notes.SUMMARY, value=f"Dataset {plan.dataset}, [{found}]({links.of_run(plan_uri)})")
    return False


def _work(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """``work of 3 min on cpu, 1 min on cuda``; ``seconds`` by device and stage."""
    return "work of " + ", ".join(
        f"{max(1, round(sum(of.values()) / 60)):,} min on {device}" for device, of in seconds.items()
    )


def anything_to_do(plan_uri: str, params: Mapping[str, Any], ti: Any) -> bool:
    """Whether the run continues: the new version would differ from the published one, and *Plan only* is off.

    If not, all later tasks are skipped.
    """
    from retro_ops.storage import store

    plan = read_plan(plan_uri)
    with failures.airflow_errors():
        uri = paths.changes_uri(plan_uri)
        changes = read_changes(store.read(uri), uri)
    kinds = ", ".join(
        f"{kind}: {some(changes[kind], MOST_SHOWN) or 'none'}" for kind in ("added", "changed", "removed")
    )
    print(f"{plan.dataset}: {kinds}; unchanged: {changes['unchanged']}")
    if changes["nothing"]:
        note = f"Dataset {plan.dataset}: nothing has changed since version {changes['base']}"
        ti.xcom_push(key=run_notes.SUMMARY, value=note)
        return False
    return goes_beyond_plan(plan_uri, params, ti)


def gate(plan_uri: str, listed: Sequence[Mapping[str, str]] | None, params: Mapping[str, Any], ti: Any) -> str:
    """Location of the plan for the next tasks: the plan itself, or one without the failed shards.

    ``listed``: arguments of the tasks of the shards, in the order of their map indexes.

    It runs after the shards even if some failed, and relies only on the reports in the store: the list of results that
    Airflow passes to a task leaves out failed shards and shifts the others.
    """
    from retro_ops.storage import read_ahead, store

    if not plan_uri:
        raise _stopped(
            ti,
            "there is no plan. Read the log of task `plan` (with a recipe also those of group `sources`), fix the "
            "cause, and clear the task that failed",
        )
    plan = read_plan(plan_uri)
    with failures.airflow_errors():
        uris = [paths.report_uri(plan, "embed-chunks", shard.name) for shard in plan.shards]
        done = read_ahead.side_by_side(store.exists, uris)
        gone = {shard.name for shard, is_done in zip(plan.shards, done, strict=True) if not is_done}
        if not gone:
            return plan_uri
        kept = tuple(shard for shard in plan.shards if shard.name not in gone)
        if not params["allow_partial"] or not _is_enough(kept):
            missing = {
                name: index for index, entry in enumerate(listed or ()) for name in shards_in(entry) if name in gone
            }
            raise _stopped(ti, _missing_message(missing, len(plan.shards), bool(kept), _causes(ti, missing)))
        changes = paths.changes_uri(plan_uri)
        if store.exists(changes):
            check_removed(read_changes(store.read(changes), changes), plan.parameters.max_removed_share, gone)
        selected = dataclasses.replace(plan, shards=kept, skipped=(*plan.skipped, *sorted(gone)))
        uri = paths.next_plan_uri(plan_uri, "selected")
        store.write(uri, plan_to_json(selected).encode())
    print(f"Continuing without {len(gone)} of {len(plan.shards)} shards: {some(sorted(gone), MOST_SHOWN)}")
    return uri


def _stopped(ti: Any, message: str) -> FinalFailureError:
    ti.xcom_push(key=failures.CAUSE, value=message[: failures.LONGEST_CAUSE])
    return FinalFailureError(message)


def _is_enough(shards: Sequence[Shard]) -> bool:
    try:
        check_choice(shards)
    except BadInputError:
        return False
    return True


def end_orphans(ti: Any) -> None:
    """Cancel the jobs of this deployment that no task watches anymore.

    A stage outlives its worker, so that a retry finds it. If there is no retry (the task was marked failed while its
    worker was dead, or the run was deleted), no other task would end it.
    """
    config = settings.load()
    with failures.airflow_errors():
        runtime = runtimes.choose(config.deployment.runtime, config)
        for handle in runtime.jobs():
            task = Task(**handle["task"])
            if not task_states.is_one_of(STARTING_OR_RUNNING | UNDECIDED, ti, task):
                runtime.cancel(handle)
                print(f"Cancelled {handle['name']}: no task watches it anymore (it belonged to {task})")


def announce_dataset(context: Context, result: Any = None) -> None:
    """Tell Airflow which dataset was published, so that other DAGs can be scheduled on it."""
    from retro_ops.storage import store

    plan = read_plan(result["plan"])
    with failures.airflow_errors():
        series = object_store.read_series(plan.root, plan.dataset)
        # A version of an earlier day was published, but is not the current one.
        number = series.number_of(paths.stage_folder(plan, "publish")) or series.current
        published = series.entry(number)
    folder = paths.dataset_folder(plan.root, plan.dataset)
    uri = folder if "://" in folder else f"file://{folder}"
    page = links.in_airflow(f"/{paths.root_key(plan.root)}/{plan.dataset}/versions/{number}")
    metrics.version_published(plan.dataset, published)
    quality = published.get("figures", {}).get("quality", {})
    extra = {key: published[key] for key in ("version", "path", "published_at")} | published["counts"]
    extra |= {"as_of": published.get("as_of"), "is_current": number == series.current, "page": page}
    extra |= {f"{split}_recall": of["recall"] for split, of in quality.items()}
    changes = paths.changes_uri(result["plan"])
    if store.exists(changes):
        with failures.airflow_errors():
            found = read_changes(store.read(changes), changes)
        extra |= {kind: found[kind][:MOST_NAMES] for kind in ("added", "changed", "removed")}
        extra |= {f"{kind}_shards": len(found[kind]) for kind in ("added", "changed", "removed")}
    context["ti"].xcom_push(key=run_notes.SUMMARY, value=_summary(plan.dataset, number, quality, page))
    context["outlet_events"][DATASETS].add(Asset(name=uri, uri=uri), extra=extra)


def _summary(dataset: str, number: int, quality: Mapping[str, Any], page: str) -> str:
    """Note of a run, as Markdown: ``Dataset demo, version 2: recall 97.6 % (train), 96.0 % (val)``, with a link."""
    recall = ", ".join(f"{100 * of['recall']:.1f} % ({split})" for split, of in quality.items())
    return f"Dataset {dataset}, [version {number}]({page})" + (f": recall {recall}" if recall else "")


def _causes(ti: Any, missing: Mapping[str, int]) -> dict[str, str]:
    """What the tasks of the first of the ``missing`` shards said when they failed, by the name of the shard."""
    found = {}
    for name, index in list(missing.items())[:MOST_CAUSES]:
        said = (ti.xcom_pull(task_ids=task, map_indexes=index, key=failures.CAUSE) for task in SHARD_TASKS)
        if cause := next(filter(None, said), None):
            found[name] = str(cause).partition("\n")[0]
    return found


def _missing_message(missing: Mapping[str, int], total: int, some_kept: bool, causes: Mapping[str, str]) -> str:
    """``missing``: map index by name of each shard that is not embedded. ``causes``: of some of them, by name."""
    if not missing:
        return (
            "the shards were not listed. Read the log of the first task that failed (`list_shards` or an earlier one), "
            "fix the cause, and clear that task"
        )
    shown = some([f"{shard} (map index {index})" for shard, index in missing.items()], MOST_SHOWN)
    lines = [
        f"{len(missing)} of {total} shards are not embedded: {shown}.",
        *(f"  {name}: {cause}" for name, cause in causes.items()),
        "  What to do: read the log of the shard's failed task in group `shards`, and fix the cause. Then",
        "  clear the failed task of each missing shard with its downstream tasks (the first one has map index "
        f"{next(iter(missing.values()))}; finished shards of a group are not built again);",
        "  or, if a corpus file was fixed, clear the task `plan` with its downstream tasks",
    ]
    return "\n".join(
        [*lines, *(["  or trigger a run with allow_partial to continue without them"] if some_kept else [])]
    )
