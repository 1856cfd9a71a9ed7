"""Neighbours updated with new chunks, against a search of everything."""

from typing import Any

import numpy as np
import pytest

from retro_ops.search import brute_force, hits
from retro_ops.search.exact import NOTHING, pack, unpack


@pytest.mark.parametrize("seed", range(20))
def test_merging_with_what_is_known_is_a_search_of_everything(seed: int) -> None:
    """Any order of old and new chunks, ties, documents with copies among old and new."""
    rng = np.random.default_rng(seed)
    d, k, total = 4, 3, int(rng.integers(2, 60))
    # Few values, so that many distances are equal.
    vectors = rng.integers(-2, 3, (total, d)).astype(np.float16)
    documents = rng.integers(0, 12, total).astype(np.uint64)
    queries = hits.Queries(rng.integers(-2, 3, (9, d)).astype(np.float16), rng.integers(0, 12, 9).astype(np.uint64))
    is_new = rng.random(total) < 0.4

    def blocks(of: np.ndarray) -> Any:
        def every(wanted: Any) -> Any:
            for i in np.flatnonzero(of):
                yield hits.Block(int(i), vectors[i : i + 1], documents[i : i + 1])

        return every

    known = brute_force.exact_search(queries, k, blocks(~is_new)).keys
    whole = brute_force.exact_search(queries, k, blocks(np.ones(total, bool))).keys
    merged = brute_force.exact_search(queries, k, blocks(is_new), None, known).keys
    np.testing.assert_array_equal(merged, whole)
    ids, distances = unpack(known)
    np.testing.assert_array_equal(pack(distances, ids, ids >= 0), known)
    assert (merged[:, 0] != NOTHING).any()
