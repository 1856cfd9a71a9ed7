"""The original's search, against the plainest statement of it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retro_ops.search import seed_profile


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_document_ranges(lengths: list[int]) -> None:
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    first, end = seed_profile.document_ranges(owners)
    for row, owner in enumerate(owners):
        own = np.flatnonzero(owners == owner)
        assert (first[row], end[row]) == (own[0], own[-1] + 1)


def test_the_seed_profile_searches_once_and_leaves_short_rows_short() -> None:
    calls: list[tuple[int, int]] = []

    def search(queries: np.ndarray, width: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        calls.append((width, nprobe))
        return np.array([[1.0, 1.0, 1.0, 2.0]], np.float32), np.array([[9, 2, 4, -1]])

    own = np.array([4]), np.array([10])
    found = seed_profile.seed_neighbours(search, np.zeros((1, 2), np.float32), *own, 3, 4, 1)
    assert calls == [(7, 1)]
    assert found.ids.tolist() == [[2, -1, -1]]


@given(hnp.arrays(np.bool_, (3, 6)), st.integers(1, 8))
def test_keep_first_keeps_order_and_pads(keep: np.ndarray, k: int) -> None:
    ids = np.arange(18).reshape(3, 6)
    found = seed_profile.keep_first(ids, ids.astype(np.float32), keep, k)
    for row in range(3):
        kept = ids[row][keep[row]][:k].tolist()
        assert found.ids[row].tolist() == kept + [-1] * (k - len(kept))
