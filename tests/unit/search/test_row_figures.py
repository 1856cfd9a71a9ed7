"""Figures of all rows, for any division into blocks."""

import numpy as np
import pytest

from retro_ops.search.row_figures import DISTANCE_BINS, RowFigures

IDS = np.array([[3, 4], [5, -1], [-1, -1], [0, 1]])
DISTANCES = np.array([[0.0, 0.52], [1.0, np.inf], [np.inf, np.inf], [0.3, 7.0]], np.float32)


@pytest.mark.parametrize("block", [1, 3, 4])
def test_every_row_counts_once_in_any_division(block: int) -> None:
    figures = RowFigures()
    for start in range(0, len(IDS), block):
        figures.add(IDS[start : start + block], DISTANCES[start : start + block])
    assert figures.counts() == {"rows": 4, "full_rows": 2}
    assert figures.nearest.nonzero()[0].tolist() == [0, 6, 20]
    assert figures.last.nonzero()[0].tolist() == [10, len(DISTANCE_BINS) - 2], "larger ones are in the last bin"


def test_a_report_gives_back_what_was_counted_and_an_older_one_nothing() -> None:
    figures = RowFigures()
    figures.add(IDS, DISTANCES)
    done = {"counts": figures.counts(), "details": {"distances": figures.histograms()}}
    found = RowFigures.of_report(done)
    assert found is not None
    assert (found.counts(), found.histograms()) == (figures.counts(), figures.histograms())
    assert RowFigures.of_report({**done, "details": {}}) is None
