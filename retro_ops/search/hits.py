"""Queries, the chunks that they are compared with, and hits: what every search takes and gives.

A hit is one number (``exact.pack``): its exact distance in the high bits, its id in the low ones. So the order of two
hits, ties included, is that of two integers, and merging is sorting.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retro_ops.search.exact import NOTHING, Keys, smallest, unpack
from retro_ops.search.filters import REASONS, SAME_DOCUMENT, Tokens

HIT_BYTES = 32
"""Memory of a hit while whole vectors are searched: its key, of this part, of all parts and of the batch, and a copy on
the way."""

ROW_BYTES = 192
"""Memory of a row beside that: counts, and hits of its own document."""


PROBE_BYTES = 4
"""Memory of the number of a probed list, kept from part to part."""


def row_bytes(hits: int, nprobe: int = 0) -> int:
    """Memory of a row during a search of whole vectors in ``nprobe`` lists that keeps ``hits`` of the row, or during a
    merge of as many hits."""
    return ROW_BYTES + hits * HIT_BYTES + nprobe * PROBE_BYTES


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


class QueryRows(Protocol):
    """Queries that need not be in memory: a search reads some at a time, and again in another pass."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> "Queries":
        """Rows ``start:stop``."""

    def each(self, ranges: Iterable[tuple[int, int]]) -> Iterator["Queries"]:
        """Rows ``start:stop`` of each of ``ranges``. The next ones are read while the caller works on one."""

    def select(self, rows: NDArray[np.int64]) -> "QueryRows":
        """The rows ``rows`` (ascending)."""

    def read_tokens(self) -> Tokens:
        """The tokens of all rows, ``[m, chunk_size]``."""


@dataclass(frozen=True)
class Queries:
    """Queries in memory; a ``QueryRows``.

    ``vectors`` float16 ``[m, d]``; ``documents`` uint64 ``[m]``: a hit of the same document does not count. ``tokens``
    ``[m, chunk_size]``, only where a filter compares them.
    """

    vectors: NDArray[np.float16]
    documents: NDArray[np.uint64]
    tokens: Tokens | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, rows: NDArray[np.int64] | slice) -> "Queries":
        return Queries(self.vectors[rows], self.documents[rows], None if self.tokens is None else self.tokens[rows])

    def read(self, start: int, stop: int) -> "Queries":
        return self.take(slice(start, stop))

    def each(self, ranges: Iterable[tuple[int, int]]) -> Iterator["Queries"]:
        return (self.read(*of) for of in ranges)

    def select(self, rows: NDArray[np.int64]) -> "Queries":
        return self.take(rows)

    def read_tokens(self) -> Tokens:
        assert self.tokens is not None
        return self.tokens


HitFilter = Callable[[Tokens, NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""(tokens of the queries ``[m, chunk_size]``, rows int64 ``[n]``, ids int64 ``[n]``) -> code of the reason to remove
hit ``ids[i]`` of query ``rows[i]``, uint8 ``[n]``, 0 to keep it (``filters.REASONS``). It is never given hits of the
same document."""


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


@dataclass(frozen=True)
class Removed:
    """``n`` hits that do not count: row (of the query), key and reason code of each, ``[n]``."""

    rows: NDArray[np.int64]
    keys: Keys
    reasons: NDArray[np.uint8]

    @staticmethod
    def of_same_document(rows: NDArray[np.int64], keys: Keys) -> "Removed":
        return Removed(rows, keys, np.full(len(rows), SAME_DOCUMENT, np.uint8))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: NDArray[np.bool_]) -> "Removed":
        return Removed(self.rows[which], self.keys[which], self.reasons[which])

    def nearer_than(self, best: Keys, first: int = 0) -> "Removed":
        """Hits nearer than the last of ``best`` ``[m, k]`` in their row; all of them if the row is short. The rows of
        ``best`` are numbered from ``first``."""
        return self.take(self.keys < np.ascontiguousarray(best[:, -1])[self.rows - first])

    def nearest(self, count: int) -> "Removed":
        """The ``count`` nearest hits of each row."""
        return self.take(_places(self.rows, self.keys) < count)

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Number of hits by row and reason: int64 ``[rows, reasons]``."""
        cells = self.rows * len(REASONS) + (self.reasons - 1)
        return np.bincount(cells, minlength=rows * len(REASONS)).reshape(rows, len(REASONS))


NONE_REMOVED = Removed.of_same_document(np.zeros(0, np.int64), np.zeros(0, np.uint64))


def joined(parts: list[Removed]) -> Removed:
    if not parts:
        return NONE_REMOVED
    return Removed(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.reasons for part in parts]),
    )


@dataclass(frozen=True)
class Truth:
    """The neighbours of ``n`` queries by brute force: keys ``[n, k]``, and the hits that are candidates before them."""

    keys: Keys
    nearer: Removed

    def take(self, start: int, stop: int) -> "Truth":
        """The truth of queries ``start:stop``."""
        nearer = self.nearer.take((self.nearer.rows >= start) & (self.nearer.rows < stop))
        return Truth(self.keys[start:stop], Removed(nearer.rows - start, nearer.keys, nearer.reasons))

    def ids(self) -> NDArray[np.int64]:
        """Global ids of all these hits, ascending."""
        hits = np.concatenate((self.keys[self.keys != NOTHING], self.nearer.keys))
        return np.unique(unpack(hits[:, None])[0])


def merged(parts: Sequence[Truth]) -> Truth:
    """The truth of all vectors from that of each part of them."""
    keys = smallest(np.concatenate([part.keys for part in parts], axis=1), parts[0].keys.shape[1])
    return Truth(keys, joined([part.nearer for part in parts]).nearer_than(keys))


def nearest_of_both(keys: Keys, removed: Removed) -> tuple[Keys, Removed]:
    """Of each row the ``w`` nearest hits, those of ``keys`` ``[m, w]`` and ``removed`` taken together.

    They stay where they are; in the keys all others are NOTHING.
    """
    rows, columns = np.nonzero(keys != NOTHING)
    places = _places(np.concatenate((rows, removed.rows)), np.concatenate((keys[rows, columns], removed.keys)))
    near = places < keys.shape[1]
    kept = np.full_like(keys, NOTHING)
    rows, columns = rows[near[: len(rows)]], columns[near[: len(rows)]]
    kept[rows, columns] = keys[rows, columns]
    return kept, removed.take(near[len(near) - len(removed) :])


def _places(rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """The number of nearer hits in the row of each hit, int64 ``[n]``. Hits are (``rows``, ``keys``), both ``[n]``."""
    order = np.lexsort((keys, rows))
    ordered = rows[order]
    places = np.empty(len(rows), np.int64)
    places[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return places


def nearest_passing(queries: QueryRows, keys: Keys, k: int, hit_filter: HitFilter | None) -> tuple[Keys, Removed]:
    """The ``k`` smallest keys ``[m, k]`` of each row of ``keys`` ``[m, w]`` that pass the filter, and those removed.

    Comparing tokens is the expensive part, so hits are filtered nearest first, ``k`` of each row at a time, and only
    for rows that are not full yet.
    """
    if hit_filter is None:
        return smallest(keys, k), NONE_REMOVED
    tokens = queries.read_tokens()
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
        reasons = hit_filter(tokens, rows, unpack(hits)[0])
        removed.append(Removed(rows[reasons > 0], hits[reasons > 0], reasons[reasons > 0]))
        rows, hits = rows[reasons == 0], hits[reasons == 0]
        # Rows ascend, so the place of a hit in its row is its distance from the first hit of the row.
        places = filled[rows] + np.arange(len(rows)) - np.searchsorted(rows, rows)
        fits = places < k
        best[rows[fits], places[fits]] = hits[fits]
        filled = np.minimum(filled + np.bincount(rows, minlength=len(keys)), k)
    return best, joined(removed)
