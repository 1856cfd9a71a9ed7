"""Brings the neighbours of the base version up to date: existing queries search only the new chunks.

1. The base version stores the nearest neighbours of each chunk with exact distances. Their ids are renumbered to the
   new index spec.
2. A row whose neighbours are all still there can only change by new chunks. The ``k`` best of its old neighbours and
   of the new chunks are the ``k`` best of all, so the cost grows with the change, not with the corpus.
3. A row that lost a neighbour is searched in the whole index again: the next best after its last one is unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.index import filling, index_types
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import memory_limit, open_if_larger_than
from retro_ops.plan.paths import distances_uri
from retro_ops.search import reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.exact import Keys, pack, smallest
from retro_ops.search.hits import Found, QueryRows
from retro_ops.search.jobs import PreviousNeighbours
from retro_ops.search.open_index import SearchedIndex
from retro_ops.search.queries import QueryShard, StoredRows
from retro_ops.search.renumbering import GONE, renumber
from retro_ops.search.reranking import Index, Width
from retro_ops.storage.npy import NpyReader, open_npy

FullSearch = Callable[[QueryRows], Found]
"""Search of the whole index."""


COMPARED_ROWS = 2**17
"""Rows that are compared with the new chunks at a time: with float32 copies, 400 MB at 384 dimensions."""


@dataclass
class Done:
    """Rows whose neighbours were merged with new chunks, and rows that were searched in the whole index."""

    merged_rows: int = 0
    searched_rows: int = 0


@dataclass(frozen=True)
class NewChunks:
    """Search of the chunks that the base version did not have. ``width`` None: exactly.

    They are few as a rule and then compared one by one; otherwise they are searched in an ``index`` of their own.
    """

    searched: SearchedIndex
    positions: list[int]
    """Places of the new shards in the index spec."""
    index: Index | None
    k: int
    width: Width | None
    cells: int
    """Queries x candidates held at a time."""

    def search(self, queries: QueryRows, known: Keys) -> Found:
        """The ``k`` best of ``known`` (uint64 ``[m, k]``) and the new chunks."""
        if not self.positions:
            return replace(Found.nothing(len(queries), self.k), keys=known)
        if self.index is None or self.width is None:
            return self._compare(queries, known)
        found = reranking.candidates(queries, self.k, self.index, self.index.clip(self.width), self.cells)
        return Found(smallest(np.concatenate((known, found.keys), axis=1), self.k), found.removed)

    def _compare(self, queries: QueryRows, known: Keys) -> Found:
        """By brute force, COMPARED_ROWS at a time: the new chunks are read again for each."""
        hit_filter, compare = self.searched.hit_filter, self.searched.compare
        blocks, found = self.searched.chunks.blocks_of(self.positions), Found.nothing(len(queries), self.k)
        for start in range(0, len(queries), COMPARED_ROWS):
            rows = slice(start, min(start + COMPARED_ROWS, len(queries)))
            some = queries.read(rows.start, rows.stop)
            found.put(rows, exact_search(some, self.k, blocks, hit_filter, known[rows], compare))
        return found


def new_chunks(
    previous: PreviousNeighbours, searched: SearchedIndex, k: int, width: Width | None, cells: int
) -> NewChunks:
    """The search of the new chunks; their index, if they need one, is shared by all shards with this ``previous``."""
    kept = frozenset(previous.positions)
    readers = searched.chunks.embeddings
    positions = [position for position in range(len(readers)) if position not in kept]
    count = sum(len(readers[position]) for position in positions)
    if width is None or count <= index_types.FLAT_VECTORS:
        return NewChunks(searched, positions, None, k, width, cells)
    if previous.partials not in searched.of_new_shards:
        searched.of_new_shards[previous.partials] = _index_of(previous, searched, positions)
    return NewChunks(searched, positions, searched.of_new_shards[previous.partials], k, width, cells)


class Update:
    """Brings the rows of a query shard up to date.

    BadInputError if the previous neighbours are damaged: otherwise the damage would go on as part of a sound file.
    """

    def __init__(self, previous: PreviousNeighbours, shard: QueryShard, new: NewChunks) -> None:
        self.done = Done()
        self._shard, self._new = shard, new
        for uri in (previous.neighbours, distances_uri(previous.neighbours)):
            report.check_unchanged(uri)
        self._neighbours = _of_shard(open_npy(previous.neighbours, ndim=2, kind="i"), shard)
        self._distances = open_npy(distances_uri(previous.neighbours), ndim=2, kind="f")
        offsets = new.searched.chunks.offsets
        self._counts = np.array(previous.counts, np.int64)
        self._offsets = np.array([-1 if at is None else offsets[at] for at in previous.positions], np.int64)

    def search_rows(self, start: int, stop: int, full_search: FullSearch) -> Found:
        """Neighbours of rows ``start:stop``. ``full_search``: for rows that lost a neighbour."""
        stop = min(stop, len(self._shard))
        queries = StoredRows([self._shard], range(start, stop))
        distances = self._distances.rows(start, stop)
        ids = renumber(self._neighbours.rows(start, stop), self._counts, self._offsets)
        found = Found.nothing(len(queries), ids.shape[1])
        incomplete = self._incomplete(ids)
        merged, searched = np.flatnonzero(~incomplete), np.flatnonzero(incomplete)
        if len(merged):
            known = pack(distances[merged], ids[merged], ids[merged] >= 0)
            found.put(merged, self._new.search(queries.select(merged), known))
        if len(searched):
            found.put(searched, full_search(queries.select(searched)))
        self.done.merged_rows += len(merged)
        self.done.searched_rows += len(searched)
        return found

    def _incomplete(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Rows of ``ids`` ``[m, k]`` that need a search of the whole index: bool ``[m]``."""
        lost: NDArray[np.bool_] = (ids == GONE).any(axis=1)
        if self._new.index is not None:
            # An index may miss the chunks that a short row lacks. A full row stays full.
            lost |= (ids < 0).any(axis=1)
        return lost


def _of_shard(neighbours: NpyReader, shard: QueryShard) -> NpyReader:
    if len(neighbours) != len(shard):
        raise BadInputError(
            f"{neighbours.uri} has {len(neighbours):,} rows, the shard has {len(shard):,}",
            "the base version is damaged: repair it",
        )
    return neighbours


def _index_of(previous: PreviousNeighbours, searched: SearchedIndex, positions: list[int]) -> Index:
    """An index of the shards at ``positions`` alone, in global ids."""
    if by_lists := searched.over_lists(previous.trained, previous.partials, positions):
        return by_lists
    if parts := open_if_larger_than(memory_limit(searched.parameters), previous.partials):
        return searched.over_parts(parts, positions)
    index = load_index(previous.trained)
    for uri in previous.partials:
        filling.merge(index, load_index(uri), uri)
    count = sum(len(searched.chunks.embeddings[position]) for position in positions)
    if index.ntotal != count:
        raise BadInputError(f"the partial indexes of the new shards hold {index.ntotal:,} of {count:,} chunks")
    return searched.over(index, positions)
