"""A part of the vectors + a range of the queries -> their partial neighbours, for `retrieve-neighbours --grid`.

For indexes whose vectors do not fit on one worker's GPUs: there each task of `retrieve-neighbours` would read all
vectors. A cell of the grid loads its part once and searches it for its range of the queries. Any worker can search any
cell; a cell that failed is searched again alone.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from retro_ops import memory, uris
from retro_ops.compute import device
from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError, ConfigurationError, require_flags
from retro_ops.execution import budgets, report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.execution.shard_groups import Shared
from retro_ops.plan import digests, grid, paths, views
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import Parameters, values_for
from retro_ops.plan.plan import Plan, Split
from retro_ops.progress import Progress

if TYPE_CHECKING:
    from retro_ops.search.cells import PartSearch
    from retro_ops.search.open_index import SearchedIndex

STAGE = "search-parts"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--cell", type=split_names, metavar="A,B", help="cell of the grid, or several to search in turn"
    )
    parser.add_argument("--grid", type=grid.parse, metavar="PxR", help="with --list: P parts and R ranges of queries")
    parser.add_argument("--list", action="store_true", help="print the names of all cells, one per line")


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="the cells of a grid belong to a plan")
    plan = read_plan(arguments.plan)
    if arguments.list:
        require_flags(arguments, "grid", remedy="name the shape of the grid, as 13x5")
        for cell in _cells(plan, arguments.grid):
            print(cell.name)
        return
    parameters = views.searched(parameters)
    loaded = _Loaded(plan, parameters)

    def work(name: str) -> None:
        cell = grid.parse_cell(name)
        _run(plan, cell, paths.cell_folder(plan, arguments.plan, cell), parameters, loaded)

    shard_groups.one_by_one(STAGE, "cell", arguments.cell, work)


def _cells(plan: Plan, shape: grid.Grid) -> Iterator[grid.Cell]:
    from retro_ops.search.queries import count_queries

    yield from grid.cells(shape, {split: sum(count_queries(plan, split).values()) for split in plan.splits()})


class _Loaded:
    """What the cells of a call share: the chunks of a split, and one part of its vectors."""

    def __init__(self, plan: Plan, parameters: Parameters) -> None:
        self._plan, self._parameters = plan, parameters
        self._indexes: Shared[SearchedIndex] = Shared()
        self._parts: Shared[tuple[PartSearch, int]] = Shared()

    def index(self, split: Split, where: Device) -> "SearchedIndex":
        from retro_ops.search.open_index import planned_index

        return self._indexes.get(split, lambda: planned_index(self._plan, split, where, self._parameters))

    def part(self, cell: grid.Cell, index: "SearchedIndex") -> "tuple[PartSearch, int]":
        """The search of the cell's part, and the number of lists."""
        first, end = grid.bounds(index.chunks.total, cell.parts, cell.part)
        if first == end:
            raise BadInputError(f"part {cell.part} of {cell.parts} holds no vectors", "choose fewer parts")
        return self._parts.get(f"{cell.split} {first} {end}", lambda: index.part(first, end))


def _run(plan: Plan, cell: grid.Cell, folder: str, parameters: Parameters, loaded: _Loaded) -> None:
    if parameters.profile == "seed" or plan.base:
        raise BadInputError(
            "only a first build with the default profile has a grid", "run `retrieve-neighbours` without --grid"
        )
    uri, digest = uris.join(folder, paths.REPORT), digests.cells_digest(plan, cell.split)
    chosen, inputs = values_for("retrieve-neighbours", parameters), [paths.trained_index_uri(plan)]
    report.run_once(STAGE, uri, digest, chosen, inputs, lambda: _work(plan, cell, folder, parameters, loaded))


def _work(plan: Plan, cell: grid.Cell, folder: str, parameters: Parameters, loaded: _Loaded) -> report.Outcome:
    from retro_ops.search import cells, hits
    from retro_ops.search.queries import StoredRows, query_shards
    from retro_ops.search.retrieval import read_tuned
    from retro_ops.search.tuning import width_from_json

    where = device.choose(parameters.device, "torch")
    if where.chosen != "cuda":
        raise ConfigurationError("a grid is searched on GPUs", "run `retrieve-neighbours` without --grid")
    index = loaded.index(cell.split, where)
    part, lists = loaded.part(cell, index)
    width = width_from_json(read_tuned(paths.report_uri(plan, "tune-search"), cell.split))
    shape = cells.shape_of(width, lists, index.chunks.total, parameters, bool(index.limits))
    shards = list(query_shards(plan, cell.split, index.chunks, with_tokens=False).values())
    rows = StoredRows.of(shards).between(*grid.bounds(sum(map(len, shards)), cell.ranges, cell.range))
    batch = memory.search_batch(budgets.budget(parameters)) // hits.row_bytes(shape.hits)
    progress = Progress(STAGE, len(rows), "chunks")
    with cells.LayerWriter(folder, len(shape.nprobes), shape.hits) as writer:
        for start in range(0, len(rows), max(1, batch)):
            some = rows.between(start, min(start + batch, len(rows)))
            for level, layer in cells.search(part, some, shape, start):
                writer.append(level, layer)
            progress.advance(len(some))
        outputs = writer.close()
    progress.close()
    return report.Outcome(
        counts={"rows": len(rows), "parts": cell.parts},
        outputs=outputs,
        details={"levels": list(shape.nprobes), "hits": shape.hits},
        device=where,
    )
