"""Neighbours searched in real faiss indexes, and the limits of each search."""

from collections import Counter

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retro_ops.core import neighbours
from retro_ops.core.faiss_index import searcher
from retro_ops.core.neighbours import SearchWidth, document_ranges, find_neighbours, seed_neighbours
from retro_ops.device import Device

CPU = Device("cpu", "test")
Lengths = st.lists(st.integers(1, 60), min_size=1, max_size=7)


def _line(rows: int, seed: int) -> NDArray[np.float32]:
    """Points on a line with gaps that are all different, in random order."""
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.uniform(1, 2, rows))
    return np.column_stack((rng.permutation(values), np.zeros(rows))).astype(np.float32)


def _eight_lists(vectors: NDArray[np.float32]) -> faiss.IndexIVFFlat:
    """Lists whose centroids lie along the line, so that nothing needs training."""
    places = np.linspace(vectors[:, 0].min(), vectors[:, 0].max(), 8)
    quantizer = faiss.IndexFlatL2(2)
    quantizer.add(np.column_stack((places, np.zeros(8))).astype(np.float32))
    index = faiss.IndexIVFFlat(quantizer, 2, 8)
    index.is_trained = True
    index.add(vectors)
    return index


@settings(deadline=None, max_examples=60)
@given(Lengths, st.integers(1, 5), st.integers(0, 6), st.integers(0, 2**31))
def test_a_flat_index_gives_the_neighbours_of_brute_force(lengths: list[int], k: int, margin: int, seed: int) -> None:
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    vectors = _line(len(owners), seed)
    index = faiss.IndexFlatL2(2)
    index.add(vectors)
    search, width = searcher(index, CPU, shard_over_gpus=False), SearchWidth(margin=margin, nprobe=1, nlist=1)
    found = find_neighbours(search, vectors, *document_ranges(owners), k, width, len(owners))
    for row, ids in enumerate(found.ids.tolist()):
        others = np.flatnonzero(owners != owners[row])
        distances = (vectors[others, 0].astype(np.float64) - vectors[row, 0]) ** 2
        best = others[np.argsort(distances, kind="stable")][:k].tolist()
        assert ids == best + [-1] * (k - len(best))
    np.testing.assert_array_equal(np.isinf(found.distances), found.ids == -1)


@settings(deadline=None, max_examples=30)
@given(Lengths, st.integers(1, 4), st.integers(0, 2**31))
def test_lists_that_were_not_probed_at_first_fill_short_rows(lengths: list[int], k: int, seed: int) -> None:
    """One list of eight, no margin: a row may only stay short when the corpus has no more to give."""
    owners = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    vectors = _line(len(owners), seed)
    first, end = document_ranges(owners)
    search = searcher(_eight_lists(vectors), CPU, shard_over_gpus=False)
    width = SearchWidth(margin=0, nprobe=1, nlist=8)
    found = find_neighbours(search, vectors, first, end, k, width, len(owners))
    others = len(owners) - (end - first)
    assert (found.ids >= 0).sum(axis=1).tolist() == np.minimum(others, k).tolist()
    assert not ((found.ids >= first[:, None]) & (found.ids < end[:, None])).any()


def test_the_seed_profile_searches_once_and_leaves_short_rows_short() -> None:
    calls: list[tuple[int, int]] = []

    def search(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        calls.append((width, nprobe))
        return np.array([[1.0, 1.0, 1.0, 2.0]], np.float32), np.array([[9, 2, 4, -1]])

    found = seed_neighbours(search, np.zeros((1, 2), np.float32), np.array([4]), np.array([10]), 3, 4, 1)
    assert calls == [(7, 1)]
    assert found.ids.tolist() == [[2, -1, -1]]


@pytest.mark.parametrize(("nlist", "nprobe"), [(1, 1), (8, 8), (64, 16), (1024, 64), (131_072, 256)])
def test_a_sixteenth_of_the_lists_is_probed_within_bounds(nlist: int, nprobe: int) -> None:
    assert neighbours.default_nprobe(nlist) == nprobe


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=50))
def test_groups_hold_every_row_once_and_keep_the_bound(room: list[int]) -> None:
    rows = np.arange(len(room)) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "CELLS_PER_SEARCH", 5000)
        groups = neighbours._groups(rows, np.array(room))
    assert Counter(np.concatenate(groups).tolist()) == Counter(rows.tolist())
    assert all(len(group) == 1 or len(group) * max(room[row // 3] for row in group) <= 5000 for group in groups)
