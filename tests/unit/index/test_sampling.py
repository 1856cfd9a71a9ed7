"""Training samples: distinct, sorted, complete, repeatable and uniform, row by row and in runs."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retro_ops.index import sampling
from retro_ops.index.sampling import ranges, run_rows, sample_in_runs, sample_rows

Sampler = Callable[[NDArray[np.int64], int, int], list[NDArray[np.int64]]]
BOTH = pytest.mark.parametrize("sample", [sample_rows, sample_in_runs])


@BOTH
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 600), st.integers(0, 3))
def test_a_sample_is_distinct_sorted_complete_and_repeatable(
    sample: Sampler, counts: list[int], wanted: int, seed: int
) -> None:
    sizes = np.array(counts, np.int64)
    found = sample(sizes, wanted, seed)
    assert sum(map(len, found)) == min(wanted, sum(counts))
    for rows, count in zip(found, counts, strict=True):
        assert np.array_equal(rows, np.unique(rows))
        assert not len(rows) or rows[-1] < count
        assert rows.dtype == np.int64
    assert all(np.array_equal(a, b) for a, b in zip(found, sample(sizes, wanted, seed), strict=True))


@BOTH
def test_a_sample_is_uniform_over_shards_of_unequal_size(sample: Sampler) -> None:
    sizes = np.array([100, 900], np.int64)
    share = np.mean([len(sample(sizes, 50, seed)[0]) for seed in range(400)])
    assert share == pytest.approx(5, abs=0.5)


def joined(found: Sequence[NDArray[np.int64]], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows numbered through all shards."""
    return np.concatenate([rows + first for rows, first in zip(found, np.cumsum(counts) - counts, strict=True)])


@pytest.mark.parametrize("wanted", [40, 90, 100])
def test_every_row_is_as_likely_in_a_sample_of_runs(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "LEAST_RUNS", 10)
    assert run_rows(wanted) == wanted // 10
    counts = np.array([7, 0, 130, 64], np.int64)  # The last run is short.
    drawn = np.zeros(counts.sum())
    for seed in range(2000):
        drawn[joined(sample_in_runs(counts, wanted, seed), counts)] += 1
    expected = 2000 * wanted / counts.sum()
    assert np.abs(drawn - expected).max() < 5.5 * np.sqrt(expected)


def test_a_large_sample_is_of_few_ranges_with_few_other_rows() -> None:
    counts = np.array([1_000_000, 3, 5_000_000], np.int64)
    wanted = sampling.LEAST_RUNS * sampling.RUN_ROWS
    found = sample_in_runs(counts, wanted, 0)
    cut = [
        (rows[start], rows[stop - 1] + 1) for rows in found for start, stop in ranges(rows, sampling.RUN_ROWS, 16384)
    ]
    assert len(cut) < 1.01 * sampling.LEAST_RUNS
    assert sum(end - first for first, end in cut) < 1.2 * wanted


def test_a_small_sample_is_of_as_many_runs_as_a_large_one() -> None:
    assert run_rows(1000) == 1
    assert run_rows(20_000) == 2
    assert run_rows(33_554_432) == 64


@given(st.lists(st.integers(0, 400), max_size=60, unique=True).map(sorted), st.integers(0, 9), st.integers(1, 50))
def test_ranges_hold_all_rows_and_only_small_gaps(rows: list[int], gap: int, most: int) -> None:
    numbers = np.array(rows, np.int64)
    found = list(ranges(numbers, gap, most))
    assert [row for start, stop in found for row in rows[start:stop]] == rows
    for start, stop in found:
        assert rows[stop - 1] - rows[start] < most
        assert all(
            after - before <= gap + 1 for before, after in zip(rows[start:stop], rows[start + 1 : stop], strict=False)
        )
