"""Nearest neighbours of chunks: search, drop hits from the same document, widen rows that are short."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Search = Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries float32 [m, d], width, nprobe) -> (distances float32 [m, width], ids int64 [m, width]).

Nearest first; -1 where fewer than ``width`` were found.
"""

NO_NEIGHBOUR = -1
CELLS_PER_SEARCH = 2**22
"""Rows x width of one search when rows are widened: 12 bytes a cell, so 50 MB."""


@dataclass(frozen=True)
class Found:
    """``ids`` int64 ``[m, k]``, -1 last; ``distances`` float32 ``[m, k]``, +inf at -1."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]

    @property
    def short_rows(self) -> NDArray[np.int64]:
        return np.flatnonzero((self.ids == NO_NEIGHBOUR).any(axis=1))


@dataclass(frozen=True)
class SearchWidth:
    """How wide to look: hits asked for beyond k, inverted lists probed, lists there are."""

    margin: int
    nprobe: int
    nlist: int


def default_nprobe(nlist: int) -> int:
    """A sixteenth of the lists, at least 16 and at most 256."""
    return min(nlist, max(16, nlist // 16), 256)


def document_ranges(chunk2seq: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each chunk the first row and the row after the last of its document within ``chunk2seq``.

    Chunks of a document are consecutive, so a same-document test is a range test.
    """
    boundaries = np.flatnonzero(np.diff(chunk2seq)) + 1
    starts = np.concatenate(([0], boundaries)).astype(np.int64)
    ends = np.concatenate((boundaries, [len(chunk2seq)])).astype(np.int64)
    lengths = ends - starts
    return np.repeat(starts, lengths)[: len(chunk2seq)], np.repeat(ends, lengths)[: len(chunk2seq)]


def keep_first(ids: NDArray[np.int64], distances: NDArray[np.float32], keep: NDArray[np.bool_], k: int) -> Found:
    """The first ``k`` hits of each row where ``keep`` holds, in their order, padded with -1."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(keep, order, axis=1)
    out_ids = np.where(kept, np.take_along_axis(ids, order, axis=1), NO_NEIGHBOUR)
    out_distances = np.where(kept, np.take_along_axis(distances, order, axis=1), np.inf)
    missing = k - order.shape[1]
    if missing > 0:
        out_ids = np.pad(out_ids, ((0, 0), (0, missing)), constant_values=NO_NEIGHBOUR)
        out_distances = np.pad(out_distances, ((0, 0), (0, missing)), constant_values=np.inf)
    return Found(out_ids, out_distances.astype(np.float32))


def other_document(ids: NDArray[np.int64], first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a hit exists and lies outside the row's own document, global ids ``first:end``."""
    kept: NDArray[np.bool_] = (ids != NO_NEIGHBOUR) & ((ids < first[:, None]) | (ids >= end[:, None]))
    return kept


def seed_neighbours(
    search: Search,
    queries: NDArray[np.float32],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    k: int,
    margin: int,
    nprobe: int,
) -> Found:
    """The original's way: one search, the index's own order, short rows stay short."""
    distances, ids = search(queries, k + margin, nprobe)
    return keep_first(ids, distances, other_document(ids, first, end), k)


def find_neighbours(
    search: Search,
    queries: NDArray[np.float32],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    k: int,
    width: SearchWidth,
    total: int,
) -> Found:
    """The ``k`` nearest chunks of other documents, ordered by (distance, id).

    ``first``/``end``: global ids of the row's own document, equal (empty) when it is not in the index.
    ``total``: vectors in the index. Rows that are short are searched again with room for the whole own
    document and with four times the lists, until they are full or every list was probed.
    """
    found = _search_rows(search, queries, first, end, k, min(total, k + width.margin), width.nprobe)
    nprobe = width.nprobe
    short = found.short_rows
    while len(short):
        # k hits beside every chunk of the own document are certain to suffice.
        room = np.minimum(total, k + (end - first)[short])
        for rows in _groups(short, room):
            wide = int(np.minimum(total, k + width.margin + (end - first)[rows].max()))
            again = _search_rows(search, queries[rows], first[rows], end[rows], k, wide, nprobe)
            found.ids[rows], found.distances[rows] = again.ids, again.distances
        short = found.short_rows
        if nprobe >= width.nlist:
            break
        nprobe = min(width.nlist, nprobe * 4)
    return found


def _search_rows(
    search: Search,
    queries: NDArray[np.float32],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    k: int,
    width: int,
    nprobe: int,
) -> Found:
    distances, ids = search(queries, width, nprobe)
    order = np.lexsort((ids, distances), axis=1)
    ids = np.take_along_axis(ids, order, axis=1)
    distances = np.take_along_axis(distances, order, axis=1)
    return keep_first(ids, distances, other_document(ids, first, end), k)


def _groups(rows: NDArray[np.int64], room: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Split ``rows`` so that each group searched at its widest stays within CELLS_PER_SEARCH."""
    order = np.argsort(room, kind="stable")
    groups, start = [], 0
    for stop in range(1, len(order) + 1):
        if stop == len(order) or (stop + 1 - start) * room[order[stop]] > CELLS_PER_SEARCH:
            groups.append(rows[order[start:stop]])
            start = stop
    return groups
