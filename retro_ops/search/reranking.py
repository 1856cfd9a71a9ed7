"""Nearest neighbours of other documents: candidates of the index, exact distances, filters, and wider search."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retro_ops.search.brute_force import exact_hits, exact_search
from retro_ops.search.exact import KEEP_ALL, NOTHING, Compare, Keys, on_host, pack, pair_distances
from retro_ops.search.faiss_search import Coarse
from retro_ops.search.hits import (
    NONE_REMOVED,
    Blocks,
    Found,
    HitFilter,
    Queries,
    QueryRows,
    Removed,
    joined,
    nearest_passing,
)

WIDEN = 4

COARSE_ROWS = 4096
"""Queries that an index in memory is searched for at a time."""


@dataclass(frozen=True)
class Width:
    """Width of a search: lists probed in the index, and candidates taken for each query."""

    nprobe: int
    candidates: int

    def __str__(self) -> str:
        return f"nprobe {self.nprobe}, {self.candidates} candidates"

    def widened(self) -> "Width":
        return Width(self.nprobe * WIDEN, self.candidates * WIDEN)


class WholeVectors(Protocol):
    """Search of whole vectors in probed lists (``gpu_search``). It reads the queries as often as it needs them."""

    def nearest(self, queries: QueryRows, k: int, nprobe: int) -> Found:
        """The ``k`` nearest chunks of other documents in the ``nprobe`` nearest lists."""

    def hits(self, queries: QueryRows, width: int, nprobe: int) -> tuple[Keys, Removed]:
        """The ``width`` nearest chunks of any document in these lists: keys ``[m, width]`` of those of other
        documents, and those of the query's own."""

    def list_ranks(
        self, vectors: NDArray[np.float16], rows: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Lists that are nearer to query ``rows[i]`` of ``vectors`` than the list of chunk ``ids[i]``, ``[n]``: that
        list is probed if ``nprobe`` is greater."""


@dataclass(frozen=True)
class Index:
    """An index and its chunks, as the search sees them."""

    coarse: Coarse | None
    """Candidates from the codes of the index; None where ``vectors`` are searched."""
    blocks: Blocks
    total: int
    lists: int
    most_candidates: int
    """Most candidates of a query."""
    hit_filter: HitFilter | None = None
    vectors: WholeVectors | None = None
    coarse_rows: int | None = COARSE_ROWS
    """Queries for ``coarse`` at a time; None for all of them, where each call reads the index from the store."""
    compare: Compare = on_host
    """Computes the scores of brute force."""

    def clip(self, width: Width) -> Width:
        return Width(min(width.nprobe, self.lists), min(width.candidates, self.total, self.most_candidates))

    def whole(self) -> WholeVectors | None:
        """The search of whole vectors, where it takes no number of candidates: no filter needs more than k hits."""
        return None if self.hit_filter else self.vectors

    def exact(self, queries: QueryRows, k: int) -> Found:
        """Brute force over all chunks."""
        if whole := self.whole():
            return whole.nearest(queries, k, self.lists)
        some = queries.read(0, len(queries))
        return exact_search(some, k, self.blocks, self.hit_filter, compare=self.compare)

    def nearer_hits(self, queries: Queries, k: int) -> tuple[Keys, Removed]:
        """The neighbours by brute force, keys ``[m, k]``, and the hits that are candidates before them."""
        if whole := self.whole():
            return whole.nearest(queries, k, self.lists).keys, NONE_REMOVED
        return exact_hits(queries, k, self.blocks, self.hit_filter, compare=self.compare)


@dataclass
class Effort:
    """Work beyond the first pass: rows that were widened, in all and in each round, and rows searched exactly."""

    widened_rows: int = 0
    exact_rows: int = 0
    by_round: list[int] = field(default_factory=list)


def find(queries: QueryRows, k: int, index: Index, width: Width, cells: int, effort: Effort) -> Found:
    """The ``k`` nearest chunks of other documents that no filter removes.

    1. One pass with ``width``, clipped to the lists and chunks of the index (``candidates``).
    2. Rows with fewer than ``k`` neighbours are searched again, each time WIDEN times as wide, until they are full or
       the width is all that the index can do.
    3. Rows that are still short are searched exactly. So a row stays short only if there are no more neighbours.

    Where whole vectors are searched, a pass takes all chunks of the probed lists, so only nprobe widens. ``cells``
    bounds queries x candidates held at a time (some 50 bytes each). ``effort`` is added to.
    """
    width = index.clip(width)
    if index.whole():
        width = Width(width.nprobe, index.total)
    found = candidates(queries, k, index, width, cells)
    effort.widened_rows += len(_short(found.keys))
    widen(found, queries, k, index, width, cells, effort)
    return found


def widen(found: Found, queries: QueryRows, k: int, index: Index, width: Width, cells: int, effort: Effort) -> None:
    """Search the short rows of ``found`` again, steps 2 and 3 of ``find``. ``width``: of the pass that gave them."""
    short = _short(found.keys)
    while len(short) and (wider := _wider(width, index)) != width:
        width = wider
        effort.by_round.append(len(short))
        found.put(short, candidates(queries.select(short), k, index, width, cells))
        short = short[_short(found.keys[short])]
    # If every list was probed and every chunk was a candidate, an exact search would find the same.
    if len(short) and width != Width(index.lists, index.total):
        effort.exact_rows += len(short)
        found.put(short, index.exact(queries.select(short), k))


def _wider(width: Width, index: Index) -> Width:
    wider = width.widened()
    return Width(min(wider.nprobe, index.lists), index.total) if index.whole() else index.clip(wider)


def _short(keys: Keys) -> NDArray[np.int64]:
    """Rows of ``keys`` ``[m, k]`` with fewer than ``k`` neighbours."""
    return np.flatnonzero((keys == NOTHING).any(axis=1))


def candidates(queries: QueryRows, k: int, index: Index, width: Width, cells: int) -> Found:
    """The ``k`` best of one pass over the index; rows may be short.

    1. ``width.candidates`` hits of each query, with exact distances, and those of the same document set aside: the
       nearest chunks of the probed lists where whole vectors are searched, else those that ``coarse_ids`` gives, which
       ``rescore`` reads.
    2. Filters remove more of them, nearest first, until ``k`` are left (``nearest_passing``).
    3. Removed hits count if they are nearer than the last neighbour.

    ``cells`` bounds queries x candidates at a time, except where whole vectors are searched: they may be read again
    for each call, so the caller decides how many queries it gives.
    """
    if whole := index.whole():
        return whole.nearest(queries, k, width.nprobe)
    if index.vectors:
        return passing(queries, k, index.hit_filter, *index.vectors.hits(queries, width.candidates, width.nprobe))
    found = Found.nothing(len(queries), k)
    rows = max(1, cells // max(1, width.candidates))
    for start in range(0, len(queries), rows):
        part = queries.read(start, min(start + rows, len(queries)))
        hits = rescore(part, coarse_ids(index, part.vectors, width), index.blocks)
        found.put(slice(start, start + len(part)), passing(part, k, index.hit_filter, *hits))
    return found


def passing(queries: QueryRows, k: int, hit_filter: HitFilter | None, keys: Keys, same_document: Removed) -> Found:
    """The ``k`` nearest of ``keys`` ``[m, w]`` that pass the filter, and the counts of those that do not."""
    best, filtered = nearest_passing(queries, keys, k, hit_filter)
    removed = joined([same_document, filtered]).nearer_than(best)
    return Found(best, removed.counts(len(best)))


def coarse_ids(index: Index, vectors: NDArray[np.float16], width: Width) -> NDArray[np.int64]:
    """Candidates in the order of the index: int64 ``[m, width.candidates]``, -1 where there are no more."""
    assert index.coarse
    ids = np.empty((len(vectors), width.candidates), np.int64)
    step = index.coarse_rows or max(1, len(vectors))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].astype(np.float32)
        ids[start : start + step] = index.coarse(block, width.candidates, width.nprobe)[1]
    return ids


def rescore(queries: Queries, ids: NDArray[np.int64], blocks: Blocks) -> tuple[Keys, Removed]:
    """Exact keys uint64 ``[m, w]`` of the candidates ``ids`` int64 ``[m, w]``, and those of the same document.

    In the keys these are NOTHING, as is -1. Candidates are visited in the order in which chunks are stored, so each
    block is read once, however many rows want it.
    """
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]  # Without -1, which sorts first.
    wanted = flat[order]
    keys, wide = np.full(flat.shape, NOTHING), queries.vectors.astype(np.float32)
    same_rows, same_keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for block in blocks(wanted):
        low, high = np.searchsorted(wanted, (block.first, block.first + len(block.vectors)))
        cells = order[low:high]
        rows, columns = cells // ids.shape[1], wanted[low:high] - block.first
        distances = pair_distances(wide, block.vectors.astype(np.float32), rows, columns)
        found = pack(distances, columns + block.first, KEEP_ALL)
        same = queries.documents[rows] == block.documents[columns]
        keys[cells] = np.where(same, NOTHING, found)
        same_rows.append(rows[same])
        same_keys.append(found[same])
    return keys.reshape(ids.shape), Removed.of_same_document(np.concatenate(same_rows), np.concatenate(same_keys))
