"""Figures of the neighbours of a shard that count every row, collected while the rows are written."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DISTANCE_BINS = np.linspace(0, 2, 41)
"""Bins of squared L2 distances; orthogonal unit vectors have 2."""


class RowFigures:
    """Numbers of rows, of full rows, and of the distances of the nearest and the last neighbour by bin."""

    def __init__(self) -> None:
        self.rows = self.full = 0
        self.nearest, self.last = np.zeros((2, len(DISTANCE_BINS) - 1), np.int64)

    def add(self, neighbours: NDArray[np.int64], distances: NDArray[np.float32]) -> None:
        """Count a block: ids ``[m, k]``, -1 where there are no more, and squared distances ``[m, k]``."""
        self.rows += len(neighbours)
        self.full += int((neighbours >= 0).all(axis=1).sum())
        # Larger distances (of vectors that are not normalised) count in the last bin.
        inside = np.where(np.isfinite(distances), np.minimum(distances, DISTANCE_BINS[-1]), np.nan)
        self.nearest += np.histogram(inside[:, 0], DISTANCE_BINS)[0]
        self.last += np.histogram(inside[:, -1], DISTANCE_BINS)[0]

    def counts(self) -> dict[str, int]:
        return {"rows": self.rows, "full_rows": self.full}

    def histograms(self) -> dict[str, list[int]]:
        return {"nearest": self.nearest.tolist(), "last": self.last.tolist()}

    @staticmethod
    def of_report(report: Mapping[str, Any]) -> "RowFigures | None":
        """The figures in a report of `retrieve-neighbours`; None in one of an earlier release, which has none."""
        if "distances" not in report["details"]:
            return None
        found, stored = RowFigures(), report["details"]["distances"]
        found.rows, found.full = report["counts"]["rows"], report["counts"]["full_rows"]
        found.nearest, found.last = (np.array(stored[name], np.int64) for name in ("nearest", "last"))
        return found
