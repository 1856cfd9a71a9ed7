"""The small tasks between the stages. They read plans and reports, never large data."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from airflow.sdk import Asset, AssetAlias, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from retro_airflow import failures, links, metrics, object_store, run_notes, runtimes, settings, task_states
from retro_airflow.failures import FinalFailureError
from retro_airflow.runtimes import Task
from retro_airflow.task_states import STARTING_OR_RUNNING, UNDECIDED
from retro_ops.errors import BadInputError
from retro_ops.plan import documents, estimate, grid, paths, sample_parts, source_list, stage_graph
from retro_ops.plan.name_lists import join_names, split_names
from retro_ops.plan.plan import Plan, Shard, Split, check_choice, plan_from_json, plan_to_json
from retro_ops.plan.published_changes import check_removed, read_changes
from retro_ops.sizes import parse_bytes

MOST_NAMES = 100
"""Most shards of each kind that an asset event names; it counts all of them."""

MOST_SHOWN = 20
"""Most shards that a message names."""

MOST_CAUSES = 3
"""Most shards of which the gate shows why they failed."""

SHARD_TASKS = ("shards.tokenize_and_chunk", "shards.embed_chunks")

DATASETS = AssetAlias("retro-datasets")
"""Through this alias every published dataset becomes an asset of its own."""


def list_source_files(sources_uri: str) -> list[dict[str, str]]:
    """Arguments of each task of ``split-corpus``: one source file, or a group if there are very many."""
    from retro_ops.storage import store

    with failures.airflow_errors():
        object_store.use_connection(settings.load().deployment.object_store.connection)
        listed = source_list.from_json(store.read(sources_uri), sources_uri)
    return [
        {"sources": sources_uri, "file": group} for group in _grouped("files", [file.name for file in listed.files])
    ]


def list_shards(plan_uri: str, stage: str) -> list[dict[str, str]]:
    """Arguments of each task of ``stage``: one shard, or a group of consecutive shards of the plan."""
    return _mapped(plan_uri, stage_graph.shards_of(read_plan(plan_uri), stage))


def list_cells(plan_uri: str) -> list[dict[str, str]]:
    """Arguments of each task of ``search-parts``: a cell of the grid, or a group of them. Skipped without a grid; then
    the search waits for the merged index."""
    plan = read_plan(plan_uri)
    found = _grid_of(plan)
    if found is None:
        raise AirflowSkipException("all vectors fit on a worker, so retrieval is not divided into cells")
    shape, queries = found
    cells = grid.cells(shape, queries)
    print(f"{len(cells)} cells: {shape.parts} parts of the vectors, {shape.ranges} ranges of the training queries")
    return [{"plan": plan_uri, "cell": group} for group in _grouped("cells", [cell.name for cell in cells])]


def list_sample_parts(plan_uri: str) -> list[dict[str, str]]:
    """Arguments of each task of ``search-samples``: a part of the vectors, or a group; none for a small index."""
    plan = read_plan(plan_uri)
    parts = sample_parts.parts(_indexed_vectors(plan, _chunks(plan)))
    return [{"plan": plan_uri, "part": group} for group in _grouped("parts", [part.name for part in parts])]


def list_shards_to_validate(plan_uri: str, changed_only: bool) -> list[dict[str, str | bool]]:
    """Arguments of each task of ``validate-shards``: a shard, or a group; none for a small corpus."""
    plan = read_plan(plan_uri)
    if not sample_parts.is_large(sum(_chunks(plan).values())):
        return []
    return [{**entry, "changed-only": changed_only} for entry in _mapped(plan_uri, plan.shards)]


def list_shards_to_query(plan_uri: str, stage: str) -> list[dict[str, str]]:
    """Arguments of each task of ``stage``, with the grid if the search is divided."""
    plan = read_plan(plan_uri)
    mapped = _mapped(plan_uri, stage_graph.shards_of(plan, stage))
    found = _grid_of(plan)
    return [{**entry, "grid": str(found[0])} for entry in mapped] if found else mapped


def _grid_of(plan: Plan) -> tuple[grid.Grid, dict[Split, int]] | None:
    """The grid of the search of ``plan`` and its queries by split; None if the vectors fit on one worker."""
    wanted = settings.load().deployment.grid
    if wanted is None or plan.base or plan.parameters.profile == "seed":
        return None
    chunks = _chunks(plan)
    vectors = _indexed_vectors(plan, chunks)
    capacity = parse_bytes(wanted.gpu_memory)
    shape = grid.choose(vectors, plan.identity.dimension, capacity, wanted.workers, _most_tasks())
    if shape is None:
        return None
    return shape, {split: sum(chunks[shard.name] for shard in plan.queried(split)) for split in plan.splits()}


def _indexed_vectors(plan: Plan, chunks: Mapping[str, int]) -> int:
    return sum(chunks[shard.name] for shard in plan.shards if shard.indexed)


class _Report(TypedDict):
    counts: dict[str, int]


def _chunks(plan: Plan) -> dict[str, int]:
    """Chunks of each shard, from the reports of ``tokenize-and-chunk``."""
    from retro_ops.storage import read_ahead, store

    uris = [paths.report_uri(plan, "tokenize-and-chunk", shard.name) for shard in plan.shards]
    with failures.airflow_errors():
        reports = read_ahead.side_by_side(lambda uri: documents.read(store.read(uri), uri, _Report), uris)
    counts = (report["counts"]["chunks"] for report in reports)
    return dict(zip((shard.name for shard in plan.shards), counts, strict=True))


def list_unfinished_shards(plan_uri: str, stage: str) -> list[dict[str, str]]:
    """Arguments of each task of ``stage``, only for shards without a report of it."""
    from retro_ops.storage import read_ahead, store

    plan = read_plan(plan_uri)
    shards = stage_graph.shards_of(plan, stage)
    with failures.airflow_errors():
        done = read_ahead.side_by_side(store.exists, [paths.report_uri(plan, stage, shard.name) for shard in shards])
    unfinished = [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
    print(f"{stage}: {len(unfinished)} of {len(shards)} shards remain to be done")
    return _mapped(plan_uri, unfinished)


def _mapped(plan_uri: str, shards: Sequence[Shard]) -> list[dict[str, str]]:
    """Arguments of a task for each shard, or for each group, the largest first: Airflow starts tasks in the order of
    their map indexes, and a large one that started last would run alone."""
    most, sizes = _most_tasks(), {shard.name: _size(shard) for shard in shards}
    groups = [[shard.name] for shard in shards] if len(shards) <= most else _even_groups(sizes, most)
    if len(groups) < len(shards):
        print(f"{len(shards)} shards are divided among {len(groups)} tasks of about the same size")
    groups.sort(key=lambda names: -sum(sizes[name] for name in names))
    return [{"plan": plan_uri, "shard": join_names(names)} for names in groups]


def _size(shard: Shard) -> int:
    return 1 + sum(source.bytes for source in shard.sources)


def _even_groups(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in at most ``most`` groups of consecutive ones, by where the middle of each lies in all ``sizes``."""
    total, ends = sum(sizes.values()), itertools.accumulate(sizes.values())
    numbers = [int((end - size / 2) * most / total) for end, size in zip(ends, sizes.values(), strict=True)]
    grouped = itertools.groupby(zip(numbers, sizes, strict=True), key=lambda entry: entry[0])
    return [[name for _, name in entries] for _, entries in grouped]


def _grouped(kind: str, names: Sequence[str]) -> list[str]:
    """Names for each task, separated by commas: one, or a group if there are more names than tasks allowed."""
    size = max(1, -(-len(names) // _most_tasks()))
    groups = [join_names(names[first : first + size]) for first in range(0, len(names), size)]
    if size > 1:
        print(f"{len(names)} {kind} are divided among {len(groups)} tasks, {size} to each")
    return groups


def _most_tasks() -> int:
    """Most tasks that a stage is mapped to."""
    return int(min(settings.load().mapped_tasks, conf.getint("core", "max_map_length")))


def shards_in(entry: Mapping[str, str]) -> list[str]:
    """Names of the shards in the arguments of a mapped task."""
    return split_names(entry["shard"])


def look_for_duplicates(plan_uri: str) -> bool:
    """Whether duplicates have to be looked for; if not, the two tasks that do so are skipped."""
    plan = read_plan(plan_uri)
    return plan.parameters.duplicates != "keep" and not plan.deduplicated


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
    found = f"planned only, {len(plan.shards):,} shards{about}"
    print(f"{plan.dataset}: {found}")
    ti.xcom_push(key=run_notes.SUMMARY, value=f"Dataset {plan.dataset}, [{found}]({links.of_run(plan_uri)})")
    return False


def _work(seconds: Mapping[str, Mapping[str, float]]) -> str:
    """``work of 3 min on cpu, 1 min on cuda``; ``seconds`` by device and stage."""
    return "work of " + ", ".join(
        f"{max(1, round(sum(of.values()) / 60)):,} min on {device}" for device, of in seconds.items()
    )


def anything_to_do(plan_uri: str, params: Mapping[str, Any], ti: Any) -> bool:
    """Whether the run continues: the new version would differ from the published one, and more than a plan is wanted.

    If not, all later tasks are skipped.
    """
    from retro_ops.storage import store

    plan = read_plan(plan_uri)
    with failures.airflow_errors():
        uri = paths.changes_uri(plan_uri)
        changes = read_changes(store.read(uri), uri)
    kinds = ", ".join(f"{kind}: {_some(changes[kind]) or 'none'}" for kind in ("added", "changed", "removed"))
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
    print(f"Continuing without {len(gone)} of {len(plan.shards)} shards: {_some(sorted(gone))}")
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


def read_plan(uri: str) -> Plan:
    from retro_ops.storage import store

    with failures.airflow_errors():
        object_store.use_connection(settings.load().deployment.object_store.connection)
        return plan_from_json(store.read(uri), uri)


def _some(names: Sequence[str]) -> str:
    """The first MOST_SHOWN of ``names`` and the number of the others."""
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


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
    shown = _some([f"{shard} (map index {index})" for shard, index in missing.items()])
    lines = [
        f"{len(missing)} of {total} shards are not embedded: {shown}.",
        *(f"  {name}: {cause}" for name, cause in causes.items()),
        "  What to do: read the log of the shard's failed task in group `shards`, and fix the cause. Then",
        f"  clear map index {next(iter(missing.values()))} of it with its downstream tasks, and those of the other "
        "missing shards (finished shards of a group are not built again);",
        "  or, if a corpus file was fixed, clear the task `plan` with its downstream tasks",
    ]
    return "\n".join(
        [*lines, *(["  or trigger a run with allow_partial to continue without them"] if some_kept else [])]
    )
