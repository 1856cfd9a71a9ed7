"""Pairs, groups and clusters of documents."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retro_ops.duplicates import document_pairs, minhash


@given(st.lists(st.integers(0, 5), max_size=60))
def test_groups_and_pairs(keys: list[int]) -> None:
    documents = np.arange(len(keys), dtype=np.int64) * 3
    members, starts = document_pairs.groups(np.array(keys, np.uint64), documents)
    expected = {key: [3 * i for i, k in enumerate(keys) if k == key] for key in set(keys)}
    groups = [part.tolist() for part in np.split(members, starts[1:])] if len(starts) else []
    assert sorted(groups) == sorted(of for of in expected.values() if len(of) > 1)
    pairs = document_pairs.candidates(members, starts)
    low, high = document_pairs.unpack(pairs)
    assert (low < high).all()
    small = {
        p for of in expected.values() if len(of) <= document_pairs.ALL_PAIRS for p in itertools.combinations(of, 2)
    }
    assert small <= set(zip(low.tolist(), high.tolist(), strict=True))
    # The pairs of a forest connect the same documents.
    if len(pairs):
        for of in (pairs, document_pairs.star(members, starts)):
            assert _partition(document_pairs.forest(of)) == _partition(of) == sorted(sorted(g) for g in groups)


def _partition(pairs: document_pairs.Pairs) -> list[list[int]]:
    documents, of = document_pairs.clusters(pairs)
    return sorted(documents[of == number].tolist() for number in np.unique(of))


def test_the_canonical_document_is_the_first_of_the_lowest_rank() -> None:
    documents = np.array([2, 3, 5, 7, 11, 13])
    clusters = np.array([0, 1, 0, 1, 0, 2])
    rank: NDArray[np.int64] = np.array([1, 1, 0, 1, 0, 1])  # 5 and 11 are validation documents
    assert document_pairs.canonical_of(documents, clusters, rank).tolist() == [5, 3, 5, 3, 5, 13]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_bring_what_is_at_the_threshold(threshold: float) -> None:
    rows = document_pairs.rows_per_band(threshold)
    bands = minhash.PERMUTATIONS // rows
    assert 1 - (1 - threshold**rows) ** bands >= document_pairs.LEAST_RECALL
    if rows < minhash.PERMUTATIONS:
        more = rows + 1
        assert 1 - (1 - threshold**more) ** (minhash.PERMUTATIONS // more) < document_pairs.LEAST_RECALL
