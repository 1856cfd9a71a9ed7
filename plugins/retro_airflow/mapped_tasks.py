"""The arguments of mapped tasks: a shard, a group of shards, a cell or a part each. Only plans and reports are read."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TypedDict

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from retro_airflow import failures, object_store, settings
from retro_ops.plan import documents, grid, paths, sample_parts, source_list, stage_graph
from retro_ops.plan.name_lists import join_names, split_names
from retro_ops.plan.plan import Plan, Shard, Split, plan_from_json
from retro_ops.sizes import parse_bytes


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


class _Tokenized(TypedDict):
    counts: dict[str, int]


def _chunks(plan: Plan) -> dict[str, int]:
    """Chunks of each shard, from the reports of ``tokenize-and-chunk``."""
    from retro_ops.storage import read_ahead, store

    uris = [paths.report_uri(plan, "tokenize-and-chunk", shard.name) for shard in plan.shards]
    with failures.airflow_errors():
        reports = read_ahead.side_by_side(lambda uri: documents.read(store.read(uri), uri, _Tokenized), uris)
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


def read_plan(uri: str) -> Plan:
    from retro_ops.storage import store

    with failures.airflow_errors():
        object_store.use_connection(settings.load().deployment.object_store.connection)
        return plan_from_json(store.read(uri), uri)
