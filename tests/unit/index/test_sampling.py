"""Training samples: distinct, sorted, complete, repeatable and uniform."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.index.sampling import sample_rows


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 600), st.integers(0, 3))
def test_a_sample_is_distinct_sorted_complete_and_repeatable(counts: list[int], wanted: int, seed: int) -> None:
    sizes = np.array(counts, np.int64)
    found = sample_rows(sizes, wanted, seed)
    assert sum(map(len, found)) == min(wanted, sum(counts))
    for rows, count in zip(found, counts, strict=True):
        assert np.array_equal(rows, np.unique(rows))
        assert not len(rows) or rows[-1] < count
    assert all(np.array_equal(a, b) for a, b in zip(found, sample_rows(sizes, wanted, seed), strict=True))


def test_a_sample_is_uniform_over_shards_of_unequal_size() -> None:
    sizes = np.array([100, 900], np.int64)
    share = np.mean([len(sample_rows(sizes, 50, seed)[0]) for seed in range(400)])
    assert share == pytest.approx(5, abs=0.5)
