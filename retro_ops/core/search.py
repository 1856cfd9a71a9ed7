"""Nearest neighbours worth training on: wide search in the index, exact distances, widening until rows are full."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retro_ops.core.exact import NOTHING, Keys, pack, pair_distances, smallest, squared_distances

Coarse = Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries float32 [m, d], width, nprobe) -> (distances [m, width], ids int64 [m, width]); -1: fewer were found."""


@dataclass(frozen=True)
class Block:
    """Consecutive chunks of the index, the first with global id ``first``."""

    first: int
    vectors: NDArray[np.float16]
    documents: NDArray[np.uint64]
    """Identity of each chunk's document: equal for copies of one text."""


Blocks = Callable[[NDArray[np.int64] | None], Iterator[Block]]
"""Blocks in ascending order: those that hold any of the (sorted) ids, or all of them for None."""

QUERIES_PER_STEP = 512
"""Rows of an exact search at a time: with a block of 16,384, distances and keys take some 200 MB."""

WIDEN = 4


@dataclass(frozen=True)
class Width:
    """How wide to look in the index: inverted lists probed, candidates taken."""

    nprobe: int
    candidates: int


@dataclass(frozen=True)
class Index:
    """What searching needs of an index. ``most_candidates``: the widest search that its device can do."""

    coarse: Coarse
    blocks: Blocks
    total: int
    lists: int
    most_candidates: int

    def clip(self, width: Width) -> Width:
        return Width(min(width.nprobe, self.lists), min(width.candidates, self.total, self.most_candidates))


@dataclass(frozen=True)
class Queries:
    """``vectors`` float16 ``[m, d]``; ``documents`` uint64 ``[m]``: a hit of the same document does not count."""

    vectors: NDArray[np.float16]
    documents: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: NDArray[np.int64]) -> "Queries":
        return Queries(self.vectors[rows], self.documents[rows])


@dataclass
class Effort:
    """What a search took beyond its first pass."""

    widened_rows: int = 0
    exact_rows: int = 0
    same_document_hits: int = 0
    by_round: list[int] = field(default_factory=list)


def find(queries: Queries, k: int, index: Index, width: Width, cells: int, effort: Effort) -> Keys:
    """The ``k`` nearest chunks of other documents: keys uint64 ``[m, k]``, NOTHING where there are no more.

    Rows that are short are searched wider until they are full, and at last exactly, so a row stays short only if the
    index holds no more. ``cells`` bounds rows x candidates held at a time (24 bytes each).
    """
    width = index.clip(width)
    keys = _candidates(queries, k, index, width, cells, effort)
    short = _short(keys)
    effort.widened_rows += len(short)
    while len(short) and (wider := index.clip(Width(width.nprobe * WIDEN, width.candidates * WIDEN))) != width:
        width = wider
        effort.by_round.append(len(short))
        keys[short] = _candidates(queries.take(short), k, index, width, cells, effort)
        short = short[_short(keys[short])]
    # Nothing is left to find where every list was probed for every chunk.
    if len(short) and width != Width(index.lists, index.total):
        effort.exact_rows += len(short)
        keys[short] = exact_search(queries.take(short), k, index.blocks)
    return keys


def exact_search(queries: Queries, k: int, blocks: Blocks) -> Keys:
    """Brute force over all blocks, in one pass: keys uint64 ``[m, k]``."""
    best = np.full((len(queries), k), NOTHING)
    for block in blocks(None):
        ids = block.first + np.arange(len(block.vectors), dtype=np.int64)
        for start in range(0, len(queries), QUERIES_PER_STEP):
            step = slice(start, start + QUERIES_PER_STEP)
            other = queries.documents[step, None] != block.documents
            keys = pack(squared_distances(queries.vectors[step], block.vectors), ids, other)
            best[step] = smallest(np.concatenate((best[step], smallest(keys, k)), axis=1), k)
    return best


def rescore(queries: Queries, ids: NDArray[np.int64], blocks: Blocks) -> tuple[Keys, int]:
    """Exact keys uint64 ``[m, w]`` of the candidates ``ids`` int64 ``[m, w]``, and how many were of the same document.

    Candidates are visited in the order in which they are stored, so each block is read once, however many rows want it.
    """
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]  # Without the -1.
    wanted = flat[order]
    keys = np.full(flat.shape, NOTHING)
    same = 0
    for block in blocks(wanted):
        low, high = np.searchsorted(wanted, (block.first, block.first + len(block.vectors)))
        cells = order[low:high]
        rows, columns = cells // ids.shape[1], wanted[low:high] - block.first
        other = queries.documents[rows] != block.documents[columns]
        same += int(len(other) - other.sum())
        cells, rows, columns = cells[other], rows[other], columns[other]
        distances = pair_distances(queries.vectors, block.vectors, rows, columns)
        keys[cells] = pack(distances, columns + block.first, np.ones(len(cells), np.bool_))
    return keys.reshape(ids.shape), same


def _candidates(queries: Queries, k: int, index: Index, width: Width, cells: int, effort: Effort) -> Keys:
    found = np.full((len(queries), k), NOTHING)
    rows = max(1, cells // max(1, width.candidates))
    for start in range(0, len(queries), rows):
        part = queries.take(np.arange(start, min(start + rows, len(queries))))
        ids = coarse_ids(index, part.vectors, width)
        keys, same = rescore(part, ids, index.blocks)
        effort.same_document_hits += same
        found[start : start + rows] = smallest(keys, k)
    return found


COARSE_ROWS = 4096


def coarse_ids(index: Index, vectors: NDArray[np.float16], width: Width) -> NDArray[np.int64]:
    """Candidates of the index, in its own order: int64 ``[m, width.candidates]``."""
    ids = np.empty((len(vectors), width.candidates), np.int64)
    for start in range(0, len(vectors), COARSE_ROWS):
        block = vectors[start : start + COARSE_ROWS].astype(np.float32)
        ids[start : start + COARSE_ROWS] = index.coarse(block, width.candidates, width.nprobe)[1]
    return ids


def _short(keys: Keys) -> NDArray[np.int64]:
    return np.flatnonzero((keys == NOTHING).any(axis=1))
