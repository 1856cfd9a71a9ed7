"""Batches rows of token ids of unequal length: by length with padding, or packed one after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """``ids``: int32 ``[tokens]``, row after row; ``lengths``: int32 ``[rows]``, each at least 1 (see ``filled``)."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Offset of each row, and of the end: int64 ``[rows + 1]``."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))


@dataclass(frozen=True)
class Packed:
    """Rows without padding between them, in arrays of a fixed size.

    ``ids``: int32 ``[tokens]``; ``starts``: int32 ``[most_rows + 2]``, the offset of each row, then the end repeated,
    so that the last row of the arrays is always empty; ``rows``: number of rows.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    rows: int


def from_lists(rows: Iterable[list[int]], count: int) -> Rows:
    """Rows of ``count`` lists of ids."""
    lists = list(rows)
    lengths = np.fromiter(map(len, lists), np.int32, count)
    ids = np.empty(int(lengths.sum()), np.int32)
    start = 0
    for row in lists:
        ids[start : start + len(row)] = row
        start += len(row)
    return Rows(ids, lengths)


def wrap(chunks: NDArray[Any], dropped: NDArray[np.bool_], before: list[int], after: list[int], longest: int) -> Rows:
    """The ids of each chunk ``[n, chunk_size]`` without the ``dropped`` ones (bool ``[vocabulary]``), put between
    ``before`` and ``after``, and cut to ``longest`` ids in all."""
    most = longest - len(before) - len(after)
    keep = ~dropped[chunks]
    keep &= np.cumsum(keep, axis=1) <= most
    kept = keep.sum(axis=1, dtype=np.int32)
    lengths = kept + np.int32(len(before) + len(after))
    ids = np.empty(int(lengths.sum()), np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    inside = np.ones(len(ids), np.bool_)
    for offset, token in enumerate(before):
        ids[starts + offset] = token
        inside[starts + offset] = False
    for offset, token in enumerate(reversed(after), 1):
        ids[ends - offset] = token
        inside[ends - offset] = False
    ids[inside] = chunks[keep]
    return Rows(ids, lengths)


def filled(rows: Rows) -> Rows:
    """``rows`` with the id 0 in each empty one, which a model could not read: text without any token of a tokenizer
    that adds none of its own."""
    empty = np.flatnonzero(rows.lengths == 0)
    if not len(empty):
        return rows
    return Rows(np.insert(rows.ids, rows.starts[empty], 0).astype(np.int32), np.maximum(rows.lengths, 1))


def batches(lengths: NDArray[np.int32], most_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch, shortest rows first. A batch, padded to its longest row, has at most ``most_tokens``
    ids, as has every row. The result depends on ``lengths`` alone."""
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        end = first + 1
        while end < len(order) and (end - first + 1) * int(lengths[order[end]]) <= most_tokens:
            end += 1
        yield order[first:end]
        first = end


def padded(rows: Rows, chosen: NDArray[np.int64], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask (1: an id, 0: padding) of the ``chosen`` rows, int64 ``[chosen, longest row]``."""
    lengths = rows.lengths[chosen]
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = rows.ids[(rows.starts[chosen][:, None] + columns)[mask]]
    return ids, mask.astype(np.int64)


def pack(parts: Iterable[Rows], tokens: int, most_rows: int) -> Iterator[Packed]:
    """Packs all rows of ``parts``, in order: as many at a time as have at most ``tokens`` ids, up to ``most_rows``.

    No row may be longer than ``tokens``.
    """
    waiting = Rows(np.empty(0, np.int32), np.empty(0, np.int32))
    for part in parts:
        waiting = Rows(np.concatenate((waiting.ids, part.ids)), np.concatenate((waiting.lengths, part.lengths)))
        while True:
            count = _fitting(waiting, tokens, most_rows)
            if not count and len(waiting):
                raise ValueError(f"a row of {waiting.lengths[0]:,} ids does not fit in a batch of {tokens:,}")
            if count == len(waiting):
                break  # More may fit.
            yield _packed(waiting, count, tokens, most_rows)
            waiting = Rows(waiting.ids[waiting.starts[count] :], waiting.lengths[count:])
    if len(waiting):
        yield _packed(waiting, len(waiting), tokens, most_rows)


def _fitting(rows: Rows, tokens: int, most_rows: int) -> int:
    return min(int(np.searchsorted(rows.starts[1:], tokens, "right")), most_rows)


def _packed(rows: Rows, count: int, tokens: int, most_rows: int) -> Packed:
    bounds = rows.starts[: count + 1].astype(np.int32)
    end = int(bounds[-1])
    ids = np.zeros(tokens, np.int32)
    ids[:end] = rows.ids[:end]
    starts = np.full(most_rows + 2, end, np.int32)
    starts[: count + 1] = bounds
    return Packed(ids, starts, count)
