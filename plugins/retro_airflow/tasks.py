"""The small decisions between the stages. They read the plan and the reports, never large data."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from retro_airflow import failures, object_store, runtimes, settings, task_states
from retro_airflow.runtimes import Task
from retro_airflow.task_states import STARTING_OR_RUNNING, UNDECIDED
from retro_ops.errors import BadInputError
from retro_ops.plan import paths, source_list, stage_graph
from retro_ops.plan.name_lists import join_names, split_names
from retro_ops.plan.plan import Plan, Shard, check_choice, plan_from_json, plan_to_json

MOST_NAMES = 100
"""Shards of each kind that an event names; it counts them all."""

MOST_SAID = 20
"""Shards that a message names."""

DATASETS = AssetAlias("retro-datasets")
"""Every published dataset becomes an asset of its own through this alias."""


def list_source_files(sources_uri: str) -> list[dict[str, str]]:
    """Arguments of ``split-corpus``: an entry for each source file, or for several where there are very many."""
    from retro_ops.storage import store

    with failures.airflow_errors():
        object_store.use_connection(settings.load().deployment.object_store.connection)
        listed = source_list.from_json(store.read(sources_uri), sources_uri)
    return [
        {"sources": sources_uri, "file": group} for group in _grouped("files", [file.name for file in listed.files])
    ]


def list_shards(plan_uri: str, stage: str) -> list[dict[str, str]]:
    """Arguments of each task of ``stage``: one shard, or a group of shards that follow one another in the plan."""
    return _mapped(plan_uri, stage_graph.shards_of(read_plan(plan_uri), stage))


def list_unfinished_shards(plan_uri: str, stage: str) -> list[dict[str, str]]:
    """As ``list_shards``, but only shards whose ``stage`` is still to be done: often few of many."""
    from retro_ops.storage import read_ahead, store

    plan = read_plan(plan_uri)
    shards = stage_graph.shards_of(plan, stage)
    with failures.airflow_errors():
        done = read_ahead.side_by_side(store.exists, [paths.report_uri(plan, stage, shard.name) for shard in shards])
    unfinished = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
    print(f"{stage}: {len(unfinished)} of {len(shards)} shards are to be done")
    return _mapped(plan_uri, unfinished)


def _mapped(plan_uri: str, shards: Sequence[Shard]) -> list[dict[str, str]]:
    return [{"plan": plan_uri, "shard": group} for group in _grouped("shards", [shard.name for shard in shards])]


def _grouped(kind: str, names: Sequence[str]) -> list[str]:
    """Those of each task, with commas between: one, or as many that follow one another as keep the tasks few."""
    tasks = min(settings.load().mapped_tasks, conf.getint("core", "max_map_length"))
    size = max(1, -(-len(names) // tasks))
    groups = [join_names(names[first : first + size]) for first in range(0, len(names), size)]
    if size > 1:
        print(f"{len(names)} {kind} go to {len(groups)} tasks, {size} to each")
    return groups


def shards_in(entry: Mapping[str, str]) -> list[str]:
    """Names of the shards that a mapped task was given."""
    return split_names(entry["shard"])


def look_for_duplicates(plan_uri: str) -> bool:
    """Whether somebody has to look for duplicates; if not, the two tasks that do are skipped."""
    plan = read_plan(plan_uri)
    return plan.parameters.duplicates != "keep" and not plan.deduplicated


def anything_to_do(plan_uri: str) -> bool:
    """Whether a version would differ from the published one; if not, everything after this is skipped."""
    from retro_ops.storage import store

    plan = read_plan(plan_uri)
    with failures.airflow_errors():
        changes = json.loads(store.read(paths.changes_uri(plan_uri)))
    kinds = ", ".join(f"{kind}: {_some(changes[kind]) or 'none'}" for kind in ("added", "changed", "removed"))
    print(f"{plan.dataset}: {kinds}; unchanged: {changes['unchanged']}")
    return not changes["nothing"]


def gate(plan_uri: str, listed: Sequence[Mapping[str, str]] | None, params: Mapping[str, Any]) -> str:
    """Location of the plan to go on with: the plan itself, or one without the shards that failed.

    ``listed``: what the tasks of the shards were mapped over, so that a map index can be named.

    It runs after the shards whatever became of them, and believes the reports in the store alone:
    the list that Airflow hands a reducer leaves failed shards out and shifts the rest.
    """
    from retro_ops.storage import read_ahead, store

    if not plan_uri:
        raise AirflowFailException(
            "there is no plan. Look into the log of task `plan` (or `list_sources`, `split_corpus`, where a recipe is "
            "named), mend what it says, and clear it"
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
            raise AirflowFailException(_missing_message(missing, len(plan.shards), bool(kept)))
        selected = dataclasses.replace(plan, shards=kept, skipped=(*plan.skipped, *sorted(gone)))
        uri = paths.next_plan_uri(plan_uri, "selected")
        store.write(uri, plan_to_json(selected).encode())
    print(f"Going on without {len(gone)} of {len(plan.shards)} shards: {_some(sorted(gone))}")
    return uri


def _is_enough(shards: Sequence[Shard]) -> bool:
    try:
        check_choice(shards)
    except BadInputError:
        return False
    return True


def end_orphans(ti: Any) -> None:
    """Cancel the jobs of this deployment that no task watches any more.

    A stage outlives its worker so that a retry finds it. If there is no retry (the task was marked failed while its
    worker was dead, or the run was deleted), nobody else would end it.
    """
    config = settings.load()
    with failures.airflow_errors():
        runtime = runtimes.choose(config.deployment.runtime, config)
        for handle in runtime.jobs():
            task = Task(**handle["task"])
            if not task_states.is_one_of(STARTING_OR_RUNNING | UNDECIDED, ti, task):
                runtime.cancel(handle)
                print(f"Ended {handle['name']}: nobody watches it for {task} any more")


def announce_dataset(context: Context, result: Any = None) -> None:
    """Tell Airflow which dataset was published, so that other DAGs can be scheduled on it."""
    from retro_ops.storage import store

    plan = read_plan(result["plan"])
    with failures.airflow_errors():
        series = object_store.read_series(plan.root, plan.dataset)
        # A version of an earlier day is there, but is not the current one.
        number = series.number_of(paths.stage_folder(plan, "publish")) or series.current
        published = series.entry(number)
    folder = paths.dataset_folder(plan.root, plan.dataset)
    uri = folder if "://" in folder else f"file://{folder}"
    extra = {key: published[key] for key in ("version", "path", "published_at")} | published["counts"]
    extra |= {"as_of": published.get("as_of"), "is_current": number == series.current}
    changes = paths.changes_uri(result["plan"])
    if store.exists(changes):
        found = json.loads(store.read(changes))
        extra |= {kind: found[kind][:MOST_NAMES] for kind in ("added", "changed", "removed")}
        extra |= {f"{kind}_shards": len(found[kind]) for kind in ("added", "changed", "removed")}
    context["outlet_events"][DATASETS].add(Asset(name=uri, uri=uri), extra=extra)


def read_plan(uri: str) -> Plan:
    from retro_ops.storage import store

    with failures.airflow_errors():
        object_store.use_connection(settings.load().deployment.object_store.connection)
        return plan_from_json(store.read(uri), uri)


def _some(names: Sequence[str]) -> str:
    """The first of them: a line that a person reads has no room for thousands."""
    more = f" and {len(names) - MOST_SAID} more" if len(names) > MOST_SAID else ""
    return ", ".join(names[:MOST_SAID]) + more


def _missing_message(missing: Mapping[str, int], total: int, some_kept: bool) -> str:
    """``missing``: map index of each shard that is not there."""
    if not missing:
        return (
            "the shards were not listed. Look into the log of the first task that failed (`list_shards`, or one before "
            "it), mend what it says, and clear it"
        )
    shown = _some([f"{shard} (map index {index})" for shard, index in missing.items()])
    lines = [
        f"{len(missing)} of {total} shards are not embedded: {shown}.",
        "  What to do: read the log of the shard's failed task in group `shards`, and mend the cause. Then",
        f"  clear map index {next(iter(missing.values()))} of it with its downstream tasks, likewise for the others "
        "(what is done of a group is passed over);",
        "  or, if a corpus file was mended, clear the task `plan` with its downstream tasks",
    ]
    # One line for each step: the UI does not wrap them.
    return "\n".join([*lines, *(["  or trigger a run with allow_partial to go on without them"] if some_kept else [])])
