"""The original's search (profile `seed`): one look, the index's own order, hits of the same document dropped."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Search = Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries float32 [m, d], width, nprobe) -> (distances float32 [m, width], ids int64 [m, width]).

Nearest first; -1 where fewer than ``width`` were found.
"""

NO_NEIGHBOUR = -1


@dataclass(frozen=True)
class Found:
    """``ids`` int64 ``[m, k]``, -1 last; ``distances`` float32 ``[m, k]``, +inf at -1."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


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
