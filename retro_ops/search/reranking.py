"""Nearest neighbours of other documents: candidates of the index, exact distances, filters, and wider search.

A candidate is one number (``exact.pack``): its exact distance in the high bits, its id in the low ones. So the order of
two candidates, ties included, is that of two integers, and merging is sorting.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retro_ops.search.exact import (
    NOTHING,
    Compare,
    Keys,
    VectorOperand,
    near_pairs,
    on_host,
    pack,
    pair_distances,
    query_operand,
    smallest,
    squared_distances,
    unpack,
)
from retro_ops.search.faiss_search import Coarse
from retro_ops.search.filters import REASONS, SAME_DOCUMENT, Tokens


@dataclass(frozen=True)
class Block:
    """Consecutive chunks of the index: ``b`` of them, the first with global id ``first``."""

    first: int
    vectors: NDArray[np.float16]
    """``[b, d]``"""
    documents: NDArray[np.uint64]
    """``[b]``: identity of each chunk's document, equal for copies of one text."""


Blocks = Callable[[NDArray[np.int64] | None], Iterator[Block]]
"""Blocks in ascending order: those that hold any of the given ids (sorted), or all of them for None."""

QUERIES_PER_STEP = 512
"""Queries of an exact search at a time: with a block of 16,384, distances and keys take some 200 MB."""

FIRST_CHUNKS = 512
"""Chunks at a time in the first block of an exact search."""

WIDEN = 4

KEEP_ALL = np.ones(1, np.bool_)

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


@dataclass(frozen=True)
class Queries:
    """``vectors`` float16 ``[m, d]``; ``documents`` uint64 ``[m]``: a hit of the same document does not count.

    ``tokens`` ``[m, chunk_size]``, only where a filter compares them.
    """

    vectors: NDArray[np.float16]
    documents: NDArray[np.uint64]
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: NDArray[np.int64] | slice) -> "Queries":
        return Queries(self.vectors[rows], self.documents[rows], None if self.tokens is None else self.tokens[rows])


HitFilter = Callable[[Queries, NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""(queries, rows int64 ``[n]``, ids int64 ``[n]``) -> code of the reason to remove hit ``ids[i]`` of query ``rows[i]``,
uint8 ``[n]``, 0 to keep it (``filters.REASONS``). It is never given hits of the same document."""


@dataclass(frozen=True)
class Index:
    """An index and its chunks, as the search sees them."""

    coarse: Coarse
    """Candidates from the codes of the index."""
    blocks: Blocks
    total: int
    lists: int
    most_candidates: int
    """Most candidates that ``coarse`` can give."""
    hit_filter: HitFilter | None = None
    nearest: "Nearest | None" = None
    """Search of whole vectors (``gpu_search``), used in place of ``coarse`` where there is no ``hit_filter``."""
    coarse_rows: int | None = COARSE_ROWS
    """Queries for ``coarse`` at a time; None for all of them, where each call reads the index from the store."""
    compare: Compare = on_host
    """Computes the scores of brute force."""

    def clip(self, width: Width) -> Width:
        return Width(min(width.nprobe, self.lists), min(width.candidates, self.total, self.most_candidates))

    def whole(self) -> "Nearest | None":
        """The search of whole vectors, where it applies: it takes no number of candidates."""
        return None if self.hit_filter else self.nearest

    def exact(self, queries: Queries, k: int) -> "Found":
        """Brute force over all chunks."""
        whole = self.whole()
        if whole:
            return whole(queries, k, self.lists)
        return exact_search(queries, k, self.blocks, self.hit_filter, compare=self.compare)


@dataclass
class Effort:
    """Work beyond the first pass: rows that were widened, in all and in each round, and rows searched exactly."""

    widened_rows: int = 0
    exact_rows: int = 0
    by_round: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """Neighbours of ``m`` queries, and hits that were removed.

    ``keys`` uint64 ``[m, k]``, nearest first, NOTHING where there are no more. ``removed`` int64 ``[m, reasons]``:
    hits nearer than the last neighbour that do not count, by reason.
    """

    keys: Keys
    removed: NDArray[np.int64]

    @staticmethod
    def nothing(rows: int, k: int) -> "Found":
        return Found(np.full((rows, k), NOTHING), np.zeros((rows, len(REASONS)), np.int64))

    def take(self, rows: NDArray[np.int64] | slice) -> "Found":
        return Found(self.keys[rows], self.removed[rows])

    def put(self, rows: NDArray[np.int64] | slice, found: "Found") -> None:
        self.keys[rows], self.removed[rows] = found.keys, found.removed


Nearest = Callable[[Queries, int, int], Found]
"""(queries, k, nprobe) -> the ``k`` nearest chunks of other documents in the ``nprobe`` nearest lists."""


@dataclass(frozen=True)
class Removed:
    """``n`` hits that do not count: row (of the query), key and reason code of each, ``[n]``."""

    rows: NDArray[np.int64]
    keys: Keys
    reasons: NDArray[np.uint8]

    @staticmethod
    def of_same_document(rows: NDArray[np.int64], keys: Keys) -> "Removed":
        return Removed(rows, keys, np.full(len(rows), SAME_DOCUMENT, np.uint8))

    def nearer_than(self, best: Keys) -> "Removed":
        """Candidates nearer than the last of ``best`` ``[m, k]`` in their row; all of them if the row is short."""
        nearer = self.keys < np.ascontiguousarray(best[:, -1])[self.rows]
        return Removed(self.rows[nearer], self.keys[nearer], self.reasons[nearer])

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Number of hits by row and reason: int64 ``[rows, reasons]``."""
        cells = self.rows * len(REASONS) + (self.reasons - 1)
        return np.bincount(cells, minlength=rows * len(REASONS)).reshape(rows, len(REASONS))


NONE_REMOVED = Removed.of_same_document(np.zeros(0, np.int64), np.zeros(0, np.uint64))


def find(queries: Queries, k: int, index: Index, width: Width, cells: int, effort: Effort) -> Found:
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
    short = _short(found.keys)
    effort.widened_rows += len(short)
    while len(short) and (wider := _wider(width, index)) != width:
        width = wider
        effort.by_round.append(len(short))
        found.put(short, candidates(queries.take(short), k, index, width, cells))
        short = short[_short(found.keys[short])]
    # If every list was probed and every chunk was a candidate, an exact search would find the same.
    if len(short) and width != Width(index.lists, index.total):
        effort.exact_rows += len(short)
        found.put(short, index.exact(queries.take(short), k))
    return found


def _wider(width: Width, index: Index) -> Width:
    wider = width.widened()
    return Width(min(wider.nprobe, index.lists), index.total) if index.whole() else index.clip(wider)


def _short(keys: Keys) -> NDArray[np.int64]:
    """Rows of ``keys`` ``[m, k]`` with fewer than ``k`` neighbours."""
    return np.flatnonzero((keys == NOTHING).any(axis=1))


def candidates(queries: Queries, k: int, index: Index, width: Width, cells: int) -> Found:
    """The ``k`` best of one pass over the index; rows may be short.

    1. The index gives ``width.candidates`` ids for each query, by its codes (``coarse_ids``).
    2. Their exact distances are computed, and those of the same document set aside (``rescore``).
    3. Filters remove more of them, nearest first, until ``k`` are left (``_filtered``).
    4. Removed hits count if they are nearer than the last neighbour.

    ``cells`` bounds queries x candidates at a time.
    """
    if whole := index.whole():
        return whole(queries, k, width.nprobe)
    found = Found.nothing(len(queries), k)
    rows = max(1, cells // max(1, width.candidates))
    for start in range(0, len(queries), rows):
        part = queries.take(slice(start, start + rows))
        keys, same_document = rescore(part, coarse_ids(index, part.vectors, width), index.blocks)
        best, filtered = _filtered(part, keys, k, index.hit_filter)
        removed = joined([same_document, filtered]).nearer_than(best)
        found.put(slice(start, start + rows), Found(best, removed.counts(len(part))))
    return found


def coarse_ids(index: Index, vectors: NDArray[np.float16], width: Width) -> NDArray[np.int64]:
    """Candidates in the order of the index: int64 ``[m, width.candidates]``, -1 where there are no more."""
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


def exact_search(
    queries: Queries,
    k: int,
    blocks: Blocks,
    hit_filter: HitFilter | None = None,
    known: Keys | None = None,
    compare: Compare = on_host,
) -> Found:
    """Brute force over all blocks, each of which is read once.

    1. A block is compared with all queries, QUERIES_PER_STEP of them at a time. The first block comes in small pieces,
       because until a row has ``k`` neighbours, every chunk is one.
    2. The limit of a row is the distance of its last neighbour so far. Once all rows of a step have a limit, single
       precision scores find the pairs within it, and only these few are computed exactly (``near_pairs``).
    3. Pairs of one document are set aside; the others pass the filters.
    4. The ``k`` smallest keys of the old and the new neighbours stay.
    5. Removed hits are kept as long as they are nearer than the last neighbour, and counted at the end.

    ``known`` uint64 ``[m, k]``: neighbours among chunks that are in none of the blocks. ``compare``: computes the
    scores.
    """
    best = np.full((len(queries), k), NOTHING) if known is None else known.copy()
    steps = [slice(start, start + QUERIES_PER_STEP) for start in range(0, len(queries), QUERIES_PER_STEP)]
    operands = [query_operand(queries.vectors[step]) for step in steps]
    removed = [NONE_REMOVED for _ in steps]
    for block in _small_at_first(blocks(None)):
        vectors = compare(block.vectors)
        for number, step in enumerate(steps):
            part, nearest = queries.take(step), best[step]
            rows, columns, distances = _pairs_within(part, operands[number], block, vectors, unpack(nearest)[1][:, -1])
            hits = pack(distances, block.first + columns, KEEP_ALL)
            same = part.documents[rows] == block.documents[columns]
            same_document = Removed.of_same_document(rows[same], hits[same])
            new, filtered = _filtered(part, _by_row(rows[~same], hits[~same], len(part)), k, hit_filter)
            best[step] = smallest(np.concatenate((nearest, new), axis=1), k)
            removed[number] = joined([removed[number], same_document, filtered]).nearer_than(best[step])
    found = Found(best, Found.nothing(len(best), k).removed)
    for step, of_step in zip(steps, removed, strict=True):
        found.removed[step] = of_step.counts(len(best[step]))
    return found


def _pairs_within(
    queries: Queries, operand: NDArray[np.float32], block: Block, vectors: VectorOperand, limits: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows (ascending), columns and exact distances of all pairs of a query and a chunk of ``block`` within ``limits``.

    ``limits`` float32 ``[m]``: infinite for a row that is not full yet. ``operand``, ``vectors``: of the scores.
    """
    if not np.isinf(limits).any():
        return near_pairs(operand, block.vectors, vectors, limits)
    distances = squared_distances(queries.vectors, block.vectors)
    rows, columns = np.nonzero(distances <= limits[:, None])
    return rows, columns, distances[rows, columns]


def _small_at_first(blocks: Iterator[Block]) -> Iterator[Block]:
    """``blocks``, the first one cut into pieces of FIRST_CHUNKS."""
    for number, block in enumerate(blocks):
        size = FIRST_CHUNKS if number == 0 else max(1, len(block.vectors))
        for start in range(0, len(block.vectors), size):
            piece = slice(start, start + size)
            yield Block(block.first + start, block.vectors[piece], block.documents[piece])


def _filtered(queries: Queries, keys: Keys, k: int, hit_filter: HitFilter | None) -> tuple[Keys, Removed]:
    """The ``k`` smallest keys ``[m, k]`` of each row of ``keys`` ``[m, w]`` that pass the filter, and those removed.

    Comparing tokens is the expensive part, so hits are filtered nearest first, ``k`` of each row at a time, and only
    for rows that are not full yet.
    """
    if hit_filter is None:
        return smallest(keys, k), NONE_REMOVED
    ordered = np.sort(keys, axis=1)
    best = np.full((len(keys), k), NOTHING)
    filled = np.zeros(len(keys), np.int64)
    removed = [NONE_REMOVED]
    for start in range(0, ordered.shape[1], k):
        window = ordered[:, start : start + k]
        rows, columns = np.nonzero((window != NOTHING) & (filled < k)[:, None])
        if not len(rows):
            break
        hits = window[rows, columns]
        reasons = hit_filter(queries, rows, unpack(hits)[0])
        removed.append(Removed(rows[reasons > 0], hits[reasons > 0], reasons[reasons > 0]))
        rows, hits = rows[reasons == 0], hits[reasons == 0]
        # Rows ascend, so the place of a hit in its row is its distance from the first hit of the row.
        places = filled[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
        fits = places < k
        best[rows[fits], places[fits]] = hits[fits]
        filled = np.minimum(filled + np.bincount(rows, minlength=len(keys)), k)
    return best, joined(removed)


def _by_row(rows: NDArray[np.int64], hits: Keys, count: int) -> Keys:
    """``hits`` ``[n]`` of ascending ``rows`` ``[n]`` as an array of ``count`` rows, padded with NOTHING."""
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    keys = np.full((count, int(places.max(initial=-1)) + 1), NOTHING)
    keys[rows, places] = hits
    return keys


def joined(parts: list[Removed]) -> Removed:
    return Removed(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.reasons for part in parts]),
    )
