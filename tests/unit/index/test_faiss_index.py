"""Indexes as the search inspects them."""

import gc

import faiss
import numpy as np

from retro_ops.index import faiss_index


def test_queries_are_projected_after_the_index_is_dropped() -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    index = faiss.index_factory(32, "RR32,IVF4,Flat")
    index.train(vectors)
    index.add(vectors)
    expected = index.chain.at(0).apply(vectors)
    project = faiss_index.lists_of(index, np.arange(500)).project
    assert project is not None
    del index
    gc.collect()
    np.testing.assert_array_equal(project(vectors), expected)
