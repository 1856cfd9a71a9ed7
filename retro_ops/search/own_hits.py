"""Hits of the queries' own documents, as ``gpu_search`` finds them: counted, or collected from part to part."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor
from retro_ops.search.exact import Keys
from retro_ops.search.filters import SAME_DOCUMENT
from retro_ops.search.gpu_nearest import unsigned
from retro_ops.search.hits import NONE_REMOVED, Removed, joined

OWN_HITS = 2**22
"""Hits of the queries' own documents that are collected before the farthest of them are dropped."""


class OwnCounts:
    """Counts the hits of the queries' own documents in ``removed`` int64 ``[m, reasons]``, on their device."""

    def __init__(self, removed: NDArray[np.int64]) -> None:
        self._counts = removed[:, SAME_DOCUMENT - 1]

    def add(self, start: int, rows: Tensor, keys: Tensor) -> None:
        """``rows`` are counted from row ``start``."""
        if len(rows):
            counts = rows.bincount().cpu().numpy()
            self._counts[start : start + len(counts)] += counts

    def end_of_part(self, first: int, best: Keys) -> None:
        """Nothing to do: there is one part."""


class OwnHits:
    """Collects the hits of the queries' own documents. ``most`` of each row are enough; None for all of them."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._hits, self._size, self._kept = [NONE_REMOVED], 0, 0

    def add(self, start: int, rows: Tensor, keys: Tensor) -> None:
        """``rows`` are counted from row ``start``."""
        self._hits.append(Removed.of_same_document(start + rows.cpu().numpy(), unsigned(keys)))
        self._size += len(rows)
        if self._most is not None and self._size > 2 * self._kept + OWN_HITS:
            self._keep(joined(self._hits).nearest(self._most))

    def end_of_part(self, first: int, best: Keys) -> None:
        """``best`` ``[m, k]``: the nearest of other documents so far, of rows ``first:first + m``. Own hits beyond them
        will never count."""
        self._keep(joined(self._hits).nearer_than(best, first))

    def hits(self) -> Removed:
        return joined(self._hits)

    def _keep(self, hits: Removed) -> None:
        self._hits, self._size, self._kept = [hits], len(hits), len(hits)


Collector: TypeAlias = OwnCounts | OwnHits
