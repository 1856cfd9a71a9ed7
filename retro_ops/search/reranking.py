"""Nearest neighbours worth training on: wide search in the index, exact distances, widening until rows are full."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retro_ops.search.exact import (
    NOTHING,
    Compare,
    Keys,
    asking,
    near_pairs,
    on_host,
    pack,
    pair_distances,
    smallest,
    squared_distances,
    unpack,
)
from retro_ops.search.faiss_search import Coarse
from retro_ops.search.filters import REASONS, SAME_DOCUMENT, Tokens


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

FIRST_CHUNKS = 512
"""Of an exact search, in its first block, at a time."""

WIDEN = 4

EVERYONE = np.ones(1, np.bool_)

COARSE_ROWS = 4096
"""Queries that an index in memory is asked about at a time."""


@dataclass(frozen=True)
class Width:
    """How wide to look in the index: inverted lists probed, candidates taken."""

    nprobe: int
    candidates: int

    def __str__(self) -> str:
        return f"nprobe {self.nprobe}, {self.candidates} candidates"

    def widened(self) -> "Width":
        return Width(self.nprobe * WIDEN, self.candidates * WIDEN)


@dataclass(frozen=True)
class Queries:
    """``vectors`` float16 ``[m, d]``; ``documents`` uint64 ``[m]``: a hit of the same document does not count.

    ``tokens`` ``[m, chunk_size]``, only where a filter compares texts.
    """

    vectors: NDArray[np.float16]
    documents: NDArray[np.uint64]
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: NDArray[np.int64] | slice) -> "Queries":
        return Queries(self.vectors[rows], self.documents[rows], None if self.tokens is None else self.tokens[rows])


Refuse = Callable[[Queries, NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""(queries, rows int64 [n], ids int64 [n]) -> why hit ``ids[i]`` of ``rows[i]`` does not count, uint8 [n]; 0: it does.

See core/filters.py; a hit of the same document is never asked about."""


@dataclass(frozen=True)
class Index:
    """What searching needs of an index. ``most_candidates``: the widest search that it can do. ``nearest``: where whole
    vectors are searched instead of codes (core/scan.py); filters are asked on the other way all the same.
    ``coarse_rows``: queries that ``coarse`` is asked about at a time; None: as many as there are, since each call reads
    the index anew. ``compare``: who computes the scores of brute force."""

    coarse: Coarse
    blocks: Blocks
    total: int
    lists: int
    most_candidates: int
    refuse: Refuse | None = None
    nearest: "Nearest | None" = None
    coarse_rows: int | None = COARSE_ROWS
    compare: Compare = on_host

    def clip(self, width: Width) -> Width:
        return Width(min(width.nprobe, self.lists), min(width.candidates, self.total, self.most_candidates))

    def whole(self) -> "Nearest | None":
        """Finds the nearest of the probed lists, whatever the number of candidates."""
        return None if self.refuse else self.nearest

    def exact(self, queries: Queries, k: int) -> "Found":
        """Brute force."""
        whole = self.whole()
        if whole:
            return whole(queries, k, self.lists)
        return exact_search(queries, k, self.blocks, self.refuse, compare=self.compare)


@dataclass
class Effort:
    """What a search took beyond its first pass."""

    widened_rows: int = 0
    exact_rows: int = 0
    by_round: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """``keys`` uint64 ``[m, k]``, in order, NOTHING where there are no more. ``removed`` int64 ``[m, reasons]``: hits
    nearer than the last neighbour that did not count, by reason."""

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
class Refused:
    """Hits that do not count: row, key and reason of each."""

    rows: NDArray[np.int64]
    keys: Keys
    reasons: NDArray[np.uint8]

    @staticmethod
    def of_same_document(rows: NDArray[np.int64], keys: Keys) -> "Refused":
        return Refused(rows, keys, np.full(len(rows), SAME_DOCUMENT, np.uint8))

    def nearer_than(self, best: Keys) -> "Refused":
        """Those nearer than the last of ``best`` in their row; all of them where it is not full."""
        nearer = self.keys < np.ascontiguousarray(best[:, -1])[self.rows]
        return Refused(self.rows[nearer], self.keys[nearer], self.reasons[nearer])

    def counts(self, rows: int) -> NDArray[np.int64]:
        cells = self.rows * len(REASONS) + (self.reasons - 1)
        return np.bincount(cells, minlength=rows * len(REASONS)).reshape(rows, len(REASONS))


NOBODY = Refused.of_same_document(np.zeros(0, np.int64), np.zeros(0, np.uint64))


def find(queries: Queries, k: int, index: Index, width: Width, cells: int, effort: Effort) -> Found:
    """The ``k`` nearest chunks of other documents that no filter refuses.

    Rows that are short are searched wider until they are full, and at last exactly, so a row stays short only if the
    index holds no more. ``cells`` bounds rows x candidates held at a time (some 50 bytes each).
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
    # Nothing is left to find where every list was probed for every chunk.
    if len(short) and width != Width(index.lists, index.total):
        effort.exact_rows += len(short)
        found.put(short, index.exact(queries.take(short), k))
    return found


def _wider(width: Width, index: Index) -> Width:
    wider = width.widened()
    return Width(min(wider.nprobe, index.lists), index.total) if index.whole() else index.clip(wider)


def exact_search(
    queries: Queries,
    k: int,
    blocks: Blocks,
    refuse: Refuse | None = None,
    known: Keys | None = None,
    compare: Compare = on_host,
) -> Found:
    """Brute force over all blocks, in one pass. ``known`` uint64 ``[m, k]``: neighbours that are known already, of
    chunks that are in none of the blocks. ``compare``: who computes the scores."""
    best = np.full((len(queries), k), NOTHING) if known is None else known.copy()
    steps = [slice(start, start + QUERIES_PER_STEP) for start in range(0, len(queries), QUERIES_PER_STEP)]
    asked = [asking(queries.vectors[step]) for step in steps]
    refused = [NOBODY for _ in steps]
    for block in _small_at_first(blocks(None)):
        ids = block.first + np.arange(len(block.vectors), dtype=np.int64)
        given = compare(block.vectors)
        for number, step in enumerate(steps):
            part, nearest = queries.take(step), best[step]
            # Only what is as near as the neighbours so far can matter: after the first blocks that is little.
            limits = unpack(nearest)[1][:, -1]
            if np.isinf(limits).any():
                distances = squared_distances(part.vectors, block.vectors)
                rows, columns = np.nonzero(distances <= limits[:, None])
                of_pairs = distances[rows, columns]
            else:
                rows, columns, of_pairs = near_pairs(asked[number], block.vectors, given, limits)
            hits = pack(of_pairs, ids[columns], EVERYONE)
            same = part.documents[rows] == block.documents[columns]
            own = Refused.of_same_document(rows[same], hits[same])
            counted, others = _admit(part, _by_row(rows[~same], hits[~same], len(part)), k, refuse)
            best[step] = smallest(np.concatenate((nearest, counted), axis=1), k)
            refused[number] = joined([refused[number], own, others]).nearer_than(best[step])
    found = Found(best, Found.nothing(len(best), k).removed)
    for step, of_step in zip(steps, refused, strict=True):
        found.removed[step] = of_step.counts(len(best[step]))
    return found


def _small_at_first(blocks: Iterator[Block]) -> Iterator[Block]:
    """The first block in pieces: until rows have neighbours, every chunk is one."""
    for number, block in enumerate(blocks):
        size = FIRST_CHUNKS if number == 0 else max(1, len(block.vectors))
        for start in range(0, len(block.vectors), size):
            piece = slice(start, start + size)
            yield Block(block.first + start, block.vectors[piece], block.documents[piece])


def rescore(queries: Queries, ids: NDArray[np.int64], blocks: Blocks) -> tuple[Keys, Refused]:
    """Exact keys uint64 ``[m, w]`` of the candidates ``ids`` int64 ``[m, w]``, NOTHING for those of the same document,
    which come apart.

    Candidates are visited in the order in which they are stored, so each block is read once, however many rows want it.
    """
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]  # Without the -1.
    wanted = flat[order]
    keys, wide = np.full(flat.shape, NOTHING), queries.vectors.astype(np.float32)
    same_rows, same_keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for block in blocks(wanted):
        low, high = np.searchsorted(wanted, (block.first, block.first + len(block.vectors)))
        cells = order[low:high]
        rows, columns = cells // ids.shape[1], wanted[low:high] - block.first
        distances = pair_distances(wide, block.vectors.astype(np.float32), rows, columns)
        found = pack(distances, columns + block.first, EVERYONE)
        same = queries.documents[rows] == block.documents[columns]
        keys[cells] = np.where(same, NOTHING, found)
        same_rows.append(rows[same])
        same_keys.append(found[same])
    return keys.reshape(ids.shape), Refused.of_same_document(np.concatenate(same_rows), np.concatenate(same_keys))


def candidates(queries: Queries, k: int, index: Index, width: Width, cells: int) -> Found:
    """The ``k`` best of one look at the index; rows may stay short."""
    if whole := index.whole():
        return whole(queries, k, width.nprobe)
    found = Found.nothing(len(queries), k)
    rows = max(1, cells // max(1, width.candidates))
    for start in range(0, len(queries), rows):
        part = queries.take(slice(start, start + rows))
        keys, same = rescore(part, coarse_ids(index, part.vectors, width), index.blocks)
        best, refused = _admit(part, keys, k, index.refuse)
        removed = joined([same, refused]).nearer_than(best)
        found.put(slice(start, start + rows), Found(best, removed.counts(len(part))))
    return found


def _admit(queries: Queries, keys: Keys, k: int, refuse: Refuse | None) -> tuple[Keys, Refused]:
    """The ``k`` smallest keys of each row that ``refuse`` lets pass, and those that it did not.

    Nearest first, ``k`` at a time, and only rows that are not full yet, as comparing texts is the dear part.
    """
    if refuse is None:
        return smallest(keys, k), NOBODY
    ordered = np.sort(keys, axis=1)
    best = np.full((len(keys), k), NOTHING)
    filled = np.zeros(len(keys), np.int64)
    refused = [NOBODY]
    for start in range(0, ordered.shape[1], k):
        window = ordered[:, start : start + k]
        rows, columns = np.nonzero((window != NOTHING) & (filled < k)[:, None])
        if not len(rows):
            break
        hits = window[rows, columns]
        why = refuse(queries, rows, unpack(hits)[0])
        refused.append(Refused(rows[why > 0], hits[why > 0], why[why > 0]))
        rows, hits = rows[why == 0], hits[why == 0]
        # Rows are in order, so a hit's place is its distance from the first of its row.
        places = filled[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
        fits = places < k
        best[rows[fits], places[fits]] = hits[fits]
        filled = np.minimum(filled + np.bincount(rows, minlength=len(keys)), k)
    return best, joined(refused)


def _by_row(rows: NDArray[np.int64], hits: Keys, count: int) -> Keys:
    """``hits`` of ascending ``rows``, as one row of keys each, padded with NOTHING."""
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    keys = np.full((count, int(places.max(initial=-1)) + 1), NOTHING)
    keys[rows, places] = hits
    return keys


def joined(parts: list[Refused]) -> Refused:
    return Refused(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.reasons for part in parts]),
    )


def coarse_ids(index: Index, vectors: NDArray[np.float16], width: Width) -> NDArray[np.int64]:
    """Candidates of the index, in its own order: int64 ``[m, width.candidates]``."""
    ids = np.empty((len(vectors), width.candidates), np.int64)
    step = index.coarse_rows or max(1, len(vectors))
    for start in range(0, len(vectors), step):
        block = vectors[start : start + step].astype(np.float32)
        ids[start : start + step] = index.coarse(block, width.candidates, width.nprobe)[1]
    return ids


def _short(keys: Keys) -> NDArray[np.int64]:
    return np.flatnonzero((keys == NOTHING).any(axis=1))
