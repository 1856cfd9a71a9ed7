"""Exact distances and pairs, against plain arithmetic."""

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import as_rows, blocks_of, brute_force, unit_vectors

from retro_ops.compute.device import Device
from retro_ops.plan.limits import MOST_CHUNKS
from retro_ops.search import exact, reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.faiss_search import searcher
from retro_ops.search.hits import Queries
from retro_ops.search.reranking import Effort, Index, Width

CPU = Device("cpu", "test")


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.sampled_from([2, 8, 24]), st.integers(1, 5), st.integers(1, 50), st.integers(1, 90),
    st.integers(1, 8), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_a_target_of_one_is_brute_force_with_ties_for_any_batching(
    rows: int, dimension: int, k: int, block: int, cells: int, candidates: int, grid: bool, seed: int
) -> None:
    """However narrow the first search, however the work is cut: the exact neighbours, ties by id."""
    vectors = unit_vectors(rows, dimension, seed, grid)
    documents = np.sort(np.random.default_rng(seed).integers(0, max(1, rows // 3), rows)).astype(np.uint64)
    expected = brute_force(vectors, documents, k)
    blocks = blocks_of(vectors, documents, block)
    queries = Queries(vectors, documents)
    assert as_rows(exact_search(queries, k, blocks).keys) == expected
    flat = faiss.IndexFlatL2(dimension)
    flat.add(vectors.astype(np.float32))
    index = Index(searcher(flat, CPU, shard_over_gpus=False), blocks, rows, 1, rows)
    everything = reranking.find(queries, k, index, Width(1, rows), cells, Effort())
    assert as_rows(everything.keys) == expected
    narrow = reranking.find(queries, k, index, Width(1, candidates), cells, Effort())
    assert [len(row) for row in as_rows(narrow.keys)] == [len(row) for row in expected], "a row is full if it can be"


def test_distances_do_not_depend_on_how_they_are_computed() -> None:
    vectors = unit_vectors(300, 384, 1)
    whole = exact.squared_distances(vectors, vectors)
    rows, columns = np.divmod(np.arange(300 * 300), 300)
    wide = vectors.astype(np.float32)
    np.testing.assert_array_equal(exact.pair_distances(wide, wide, rows, columns), whole.ravel())
    np.testing.assert_array_equal(exact.squared_distances(vectors[7:8], vectors[100:111]), whole[7:8, 100:111])


@given(
    st.integers(1, 80),
    st.integers(1, 400),
    st.sampled_from([0.01, 1.0, 32.0]),
    st.booleans(),
    st.sampled_from([exact.on_host, exact.comparing("cpu")]),
    st.integers(0, 2**31),
)
def test_pairs_up_to_a_limit_are_all_found_and_no_other(
    rows: int, dimension: int, length: float, grid: bool, compare: exact.Compare, seed: int
) -> None:
    """Limits are distances that occur, so there are ties at them, which single precision must not lose. Unit vectors
    times a power of 2 keep distances exact, see search/exact.py; any other large factor would not."""
    rng = np.random.default_rng(seed)
    vectors = (unit_vectors(rows, dimension, seed, grid) * np.float16(length)).astype(np.float16)
    queries = vectors[rng.integers(0, rows, 20)]
    distances = exact.squared_distances(queries, vectors)
    limits = distances[np.arange(20), rng.integers(0, rows, 20)]
    of_rows, columns, found = exact.near_pairs(exact.query_operand(queries), vectors, compare(vectors), limits)
    expected = np.nonzero(distances <= limits[:, None])
    np.testing.assert_array_equal((of_rows, columns), expected)
    np.testing.assert_array_equal(found, distances[expected])


@given(st.lists(st.tuples(st.floats(0, 4, width=32), st.integers(0, MOST_CHUNKS - 1)), min_size=1, unique=True))
def test_keys_have_the_order_of_distance_and_id(pairs: list[tuple[float, int]]) -> None:
    distances, ids = np.array([d for d, _ in pairs], np.float32), np.array([i for _, i in pairs], np.int64)
    keys = exact.pack(distances, ids, np.ones(len(ids), np.bool_))
    back_ids, back = exact.unpack(np.sort(keys))
    assert list(zip(back.tolist(), back_ids.tolist(), strict=True)) == sorted(pairs)


def test_nothing_is_last_and_has_no_neighbour() -> None:
    keys = exact.pack(np.array([[1.0, 2.0]], np.float32), np.array([[5, 6]]), np.array([[False, True]]))
    ids, distances = exact.unpack(exact.smallest(keys, 3))
    assert ids.tolist() == [[6, -1, -1]]
    assert distances.tolist() == [[2.0, np.inf, np.inf]]
