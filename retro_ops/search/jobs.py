"""The jobs of `retrieve-neighbours`: which query shard searches which index, as the plan defines it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from retro_ops.plan import digests, paths, views
from retro_ops.plan.grid import Cell, Grid, ranges_of
from retro_ops.plan.plan import Plan, Shard, Split
from retro_ops.plan.specs import IndexShard

if TYPE_CHECKING:
    from retro_ops.search.merged_cells import MergedCells


@dataclass(frozen=True)
class PreviousNeighbours:
    """Neighbours of a shard in the base version, to be brought up to date."""

    neighbours: str
    counts: tuple[int, ...]
    """Chunks of each shard of the index spec that these neighbours number."""
    positions: tuple[int | None, ...]
    """Place of each of those shards in the new index spec, None if it was removed."""
    trained: str
    """The trained index, from which an index of the new shards alone is made."""
    partials: tuple[str, ...]
    """Partial indexes of the new shards, in the order of the new index spec."""


@dataclass(frozen=True)
class Job:
    """Retrieve the neighbours of one query shard from one index."""

    embeddings: str
    embeddings_report: str
    chunk2seq: str
    position: int | None
    """Place of the query shard in the index spec, None if the index does not hold it."""
    index: str
    index_report: str
    index_spec: str
    indexed: tuple[IndexShard, ...]
    """Entries of the index spec."""
    neighbours: str
    report: str
    digest: str
    kept: str | None = None
    """All that the search found, of which the neighbours are a view; None where they are all."""
    split: Split | None = None
    shard: IndexShard | None = None
    """All arrays of the query shard, where they are known."""
    tuning: str | None = None
    """Report with the tuned nprobe and candidates; None to measure them in this job."""
    pad_id: int | None = None
    trained: str = ""
    partials: tuple[str, ...] = ()
    """The trained index and the partial indexes of ``indexed``, where they are known."""
    cells: "MergedCells | None" = None
    """Its hits, where a grid was searched."""
    previous: PreviousNeighbours | None = None
    few: bool = False
    """Most rows have neighbours in the base version, so few need a search of the whole index."""
    following: Iterable["Job"] = ()
    """Later jobs of the group on the same index, which may be searched together with a small one."""


@dataclass(frozen=True)
class _OfSplit:
    """Fields that the jobs of a split have in common. ``previous``: without the neighbours of a shard."""

    indexed: tuple[IndexShard, ...]
    positions: dict[str, int]
    partials: tuple[str, ...]
    previous: PreviousNeighbours | None


class PlannedJobs:
    """The jobs of ``plan``, by shard.

    Fields that the jobs of a split have in common are computed once: for thousands of shards they take a while.
    """

    def __init__(self, plan: Plan, plan_uri: str, grid: Grid | None = None) -> None:
        """``plan_uri``: where ``plan`` is stored; ``grid``: of the cells that were searched for it."""
        self._plan, self._plan_uri, self._grid = plan, plan_uri, grid
        self._of_split = cache(self._common)
        self._counts = cache(self._count_queries)

    def job(self, name: str) -> Job:
        plan, shard = self._plan, self._plan.shard(name)
        common = self._of_split(shard.split)
        return Job(
            embeddings=paths.embeddings_uri(plan, name),
            embeddings_report=paths.report_uri(plan, "embed-chunks", name),
            chunk2seq=paths.chunks_files(plan, name)["chunk2seq"],
            position=common.positions.get(name),
            index=paths.index_uri(plan, shard.split),
            index_report=paths.report_uri(plan, "merge-indexes"),
            index_spec=paths.index_spec_uri(plan, shard.split),
            indexed=common.indexed,
            neighbours=paths.neighbours_uri(plan, name),
            kept=None if plan.parameters.keep_neighbours is None else paths.kept_uri(paths.neighbours_uri(plan, name)),
            report=paths.report_uri(plan, "retrieve-neighbours", name),
            digest=digests.neighbours_digest(plan, shard),
            split=shard.split,
            shard=paths.index_shard(plan, name),
            tuning=paths.report_uri(plan, "tune-search"),
            pad_id=plan.identity.pad_id,
            trained=paths.trained_index_uri(plan),
            partials=common.partials,
            cells=self._cells(shard, self._grid) if self._grid else None,
            previous=self._previous(shard, common.previous),
            few=plan.base is not None and any(of_base.neighbours for of_base in plan.base.shards),
        )

    def _cells(self, shard: Shard, grid: Grid) -> "MergedCells":
        from retro_ops.search.cells import CellFiles
        from retro_ops.search.merged_cells import MergedCells

        plan, split = self._plan, shard.split
        counts = {of: self._counts(of) for of in plan.splits()}
        rows = {of: sum(counts[of].values()) for of in counts}
        ranges = ranges_of(grid, rows)[split]
        names = list(counts[split])
        offset = sum(counts[split][name] for name in names[: names.index(shard.name)])
        digest = digests.cells_digest(plan, split)

        def opened(part: int, number: int) -> CellFiles:
            cell = Cell(split, part, grid.parts, number, ranges)
            return CellFiles.finished(paths.cell_folder(plan, self._plan_uri, cell), digest)

        k = views.searched(plan.parameters).num_neighbours
        return MergedCells(opened, grid.parts, ranges, offset, rows[split], k)

    def _count_queries(self, split: Split) -> dict[str, int]:
        from retro_ops.search.queries import count_queries

        return count_queries(self._plan, split)

    def _common(self, split: Split) -> _OfSplit:
        plan, current = self._plan, self._plan.indexed(split)
        positions = {shard.name: position for position, shard in enumerate(current)}
        previous = None
        if plan.base:
            numbered = plan.base.indexed(split)
            kept = {shard.name: positions[shard.name] for shard in current if digests.is_in_base_index(plan, shard)}
            new = (shard.name for shard in current if shard.name not in kept)
            previous = PreviousNeighbours(
                neighbours="",
                counts=tuple(shard.chunks for shard in numbered),
                positions=tuple(kept.get(shard.name) for shard in numbered),
                trained=paths.trained_index_uri(plan),
                partials=tuple(paths.partial_index_uri(plan, name) for name in new),
            )
        return _OfSplit(paths.index_shards(plan, split), positions, paths.partial_indexes(plan, split), previous)

    def _previous(self, shard: Shard, of_split: PreviousNeighbours | None) -> PreviousNeighbours | None:
        """Previous neighbours of a shard with the chunks of the base version; None if they are up to date."""
        base = digests.base_shard(self._plan, shard)
        up_to_date = digests.neighbours_digest(self._plan, shard)
        if not of_split or not base or base.neighbours in (None, up_to_date):
            return None
        return replace(of_split, neighbours=paths.base_neighbours_uri(self._plan, base))
