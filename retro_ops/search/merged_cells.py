"""Neighbours of a query shard from the cells of a grid: the partial hits of all parts, merged by (distance, id).

For a range of rows:

1. Read their hits from the cells of all parts, of each range of the queries that holds any of them.
2. The k smallest keys of a row are its neighbours. Own hits count if they are nearer than the last of them.
3. A row with fewer than k is short in every part, so every cell holds its next level. It takes the first level that
   fills it, or the last.

So the result is that of a search of all vectors, however they and the queries are divided.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retro_ops.plan import grid
from retro_ops.search.cells import CellFiles, Layer
from retro_ops.search.exact import NOTHING, Keys, smallest
from retro_ops.search.hits import Found, Removed, joined, nearest_of_both, row_bytes
from retro_ops.search.reranking import Effort
from retro_ops.storage import read_ahead

OpenCell = Callable[[int, int], CellFiles]


class MergedCells:
    """Hits of a query shard, whose rows begin at ``offset`` of the ``total`` rows of its split."""

    def __init__(self, open_cell: OpenCell, parts: int, ranges: int, offset: int, total: int, k: int) -> None:
        """``open_cell``: opens the cell of a part and a range, by their numbers."""
        self._open_cell, self._parts, self._ranges = open_cell, parts, ranges
        self._offset, self._total, self._k = offset, total, k
        self._opened: tuple[int, list[CellFiles]] | None = None

    def row_bytes(self, hits: int) -> int:
        """Memory of a row while its ``hits`` from each part are merged."""
        return row_bytes(self._parts * hits)

    def neighbours(self, start: int, stop: int, effort: Effort) -> Found:
        """Neighbours of rows ``start:stop``, where no filter applies."""
        found = Found.nothing(stop - start, self._k)
        for at, first, end, cells in self._pieces(start, stop):
            layers = self._read(partial(_first, first, end), cells)
            piece = self._merged(layers)
            short = np.flatnonzero((piece.keys == NOTHING).any(axis=1))
            effort.widened_rows += len(short)
            level = 1
            while len(short) and level < min(cell.levels for cell in cells):
                effort.by_round.append(len(short))
                wider = self._merged(self._read(partial(_at, level, first + short), cells))
                piece.put(short, wider)
                short = short[(wider.keys == NOTHING).any(axis=1)]
                level += 1
            found.put(slice(at, at + end - first), piece)
        return found

    def hits(self, start: int, stop: int, width: int) -> tuple[Keys, Removed]:
        """The ``width`` nearest hits of rows ``start:stop`` of any document, as ``Scan.hits`` gives them."""
        keys, own = np.full((stop - start, width), NOTHING), []
        for at, first, end, cells in self._pieces(start, stop):
            layers = self._read(partial(_first, first, end), cells)
            keys[at : at + end - first] = smallest(np.concatenate([of.keys for of in layers], axis=1), width)
            own += [Removed(at + of.rows, of.keys, of.reasons) for of in (layer.removed() for layer in layers)]
        return nearest_of_both(keys, joined(own))

    def _merged(self, layers: Sequence[Layer]) -> Found:
        best = smallest(np.concatenate([layer.keys for layer in layers], axis=1), self._k)
        own = joined([layer.removed() for layer in layers])
        return Found(best, own.nearer_than(best).counts(len(best)))

    def _read(self, of: Callable[[CellFiles], Layer], cells: Sequence[CellFiles]) -> list[Layer]:
        return read_ahead.side_by_side(of, cells, read_ahead.READERS)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int, list[CellFiles]]]:
        """Of each range of the queries that holds any of rows ``start:stop``: place there, first and end row in the
        range, and the cells of all parts."""
        start, stop = self._offset + start, self._offset + stop
        for number in range(self._ranges):
            first, end = grid.bounds(self._total, self._ranges, number)
            low, high = max(first, start), min(end, stop)
            if low < high:
                yield low - start, low - first, high - first, self._cells(number)

    def _cells(self, number: int) -> list[CellFiles]:
        if self._opened is None or self._opened[0] != number:
            opened = read_ahead.side_by_side(lambda part: self._open_cell(part, number), range(self._parts))
            self._opened = number, opened
        return self._opened[1]


def _first(start: int, stop: int, cell: CellFiles) -> Layer:
    return cell.first(start, stop)


def _at(level: int, rows: NDArray[np.int64], cell: CellFiles) -> Layer:
    return cell.at(level, rows)
