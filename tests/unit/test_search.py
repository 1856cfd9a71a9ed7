"""Exact distances, search against brute force, and the choice of a width."""

import re
from collections import Counter

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vectors import as_rows, blocks_of, clustered, unit_vectors

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index, filling, index_types, training
from retro_ops.search import exact, filters, reranking, tuning
from retro_ops.search.faiss_search import searcher
from retro_ops.search.reranking import Effort, Index, Queries, Width

CPU = Device("cpu", "test")


def brute_force(vectors: NDArray[np.float16], documents: NDArray[np.uint64], k: int) -> list[list[tuple[float, int]]]:
    """(distance, id) of the k nearest of other documents, with Python's own integers: no rounding at all."""
    whole = (vectors.astype(np.float64) * 2**24).astype(np.int64).tolist()
    rows = []
    for q, own in zip(whole, documents, strict=True):
        scored = [
            (float(np.float32(sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) / 2**48)), i)
            for i, x in enumerate(whole)
            if documents[i] != own
        ]
        rows.append(sorted(scored)[:k])
    return rows


@settings(deadline=None, max_examples=60)
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
    assert as_rows(reranking.exact_search(queries, k, blocks).keys) == expected
    flat = faiss.IndexFlatL2(dimension)
    flat.add(vectors.astype(np.float32))
    index = Index(searcher(flat, CPU, shard_over_gpus=False), blocks, rows, 1, rows)
    everything = reranking.find(queries, k, index, Width(1, rows), cells, Effort())
    assert as_rows(everything.keys) == expected
    narrow = reranking.find(queries, k, index, Width(1, candidates), cells, Effort())
    assert [len(row) for row in as_rows(narrow.keys)] == [len(row) for row in expected], "a row is full if it can be"


PAD = 0


def chunk_texts(rows: int, size: int, vocabulary: int, seed: int) -> NDArray[np.uint16]:
    """Chunks of few words, padded, some of them nearly copies of the one before."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, vocabulary, (rows, size)).astype(np.uint16)
    for row in range(1, rows, 2):
        kept = int(rng.integers(0, size + 1))
        texts[row, :kept] = texts[row - 1, :kept]
    for row in range(rows):
        texts[row, int(rng.integers(0, size + 1)) :] = PAD
    return texts


def plain_tokens(row: NDArray[np.uint16]) -> list[int]:
    tokens = [int(token) for token in row]
    while tokens and tokens[-1] == PAD:
        tokens.pop()
    return tokens


def plain_overlap(a: list[int], b: list[int]) -> float:
    return (Counter(a) & Counter(b)).total() / max(len(a), len(b), 1)


def plain_run(a: list[int], b: list[int]) -> int:
    ends = [(i, j) for i in range(len(a)) for j in range(len(b))]
    return max((next(n for n in range(len(a) + 1) if i + n >= len(a) or j + n >= len(b) or a[i + n] != b[j + n])
                for i, j in ends), default=0)  # fmt: skip


def plain_ngrams(a: list[int], b: list[int]) -> float:
    n = filters.NGRAM
    x, y = ({tuple(t[i : i + n]) for i in range(len(t) - n + 1)} for t in (a, b))
    return len(x & y) / max(len(x | y), 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.sampled_from([4, 13, 16, 40]), st.integers(1, 30), st.integers(0, 2**31))
def test_measures_of_likeness_are_their_plain_definitions(rows: int, size: int, vocabulary: int, seed: int) -> None:
    a, b = chunk_texts(rows, size, vocabulary, seed), chunk_texts(rows, size, vocabulary, seed)[::-1]
    plain = [(plain_tokens(x), plain_tokens(y)) for x, y in zip(a, b, strict=True)]
    for measure, of_pair in (
        (filters.overlap, plain_overlap),
        (filters.longest_run, plain_run),
        (filters.ngram_similarity, plain_ngrams),
    ):
        np.testing.assert_allclose(measure(a, b, PAD), [of_pair(x, y) for x, y in plain])


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.integers(1, 90), st.integers(1, 50), st.booleans(),
    st.sampled_from([0.0, 0.3, 0.8, 1.0, None]), st.sampled_from([0, 3, 10, None]), st.sampled_from([0.0, 0.2, None]),
    st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**31),
)  # fmt: skip
def test_filters_remove_what_brute_force_would_and_count_it(
    rows: int, k: int, block: int, cells: int, candidates: int, grid: bool,
    overlap: float | None, run: int | None, ngrams: float | None, batch: int, parts: int, seed: int,
) -> None:  # fmt: skip
    """With ties, for any batching and number of index parts, however narrow the first search."""
    limits = filters.Limits(overlap, run, ngrams)
    vectors = unit_vectors(rows, 8, seed, grid)
    documents = np.sort(np.random.default_rng(seed).integers(0, max(1, rows // 3), rows)).astype(np.uint64)
    texts = chunk_texts(rows, 16, 5, seed)
    plain = [plain_tokens(row) for row in texts]

    def why(i: int, j: int) -> int:
        if documents[i] == documents[j]:
            return filters.SAME_DOCUMENT
        measured = plain_overlap(plain[i], plain[j]), plain_run(plain[i], plain[j]), plain_ngrams(plain[i], plain[j])
        over = [m > limit for m, limit in zip(measured, (overlap, run, ngrams), strict=True) if limit is not None]
        codes = [c for c, limit in zip((2, 3, 4), (overlap, run, ngrams), strict=True) if limit is not None]
        return next((code for code, is_over in zip(codes, over, strict=True) if is_over), 0)

    expected, counted = [], []
    everyone = brute_force(vectors, np.arange(rows, dtype=np.uint64), rows)
    distances = exact.squared_distances(vectors, vectors)
    for i, hits in enumerate(everyone):
        ranked = sorted([*hits, (float(distances[i, i]), i)])
        kept = [hit for hit in ranked if why(i, hit[1]) == 0][:k]
        limit = kept[-1] if len(kept) == k else (np.inf, 0)
        expected.append(kept)
        counted.append([sum(why(i, j) == code and (d, j) < limit for d, j in ranked) for code in (1, 2, 3, 4)])

    def refuse(queries: Queries, of: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        assert queries.tokens is not None
        return filters.reasons(limits, queries.tokens[of], texts[ids], PAD)

    blocks = blocks_of(vectors, documents, block)
    flat = faiss.IndexFlatL2(8)
    for number, vectors_of_part in enumerate(np.array_split(vectors.astype(np.float32), parts)):
        part = faiss.IndexFlatL2(8)
        part.add(vectors_of_part)
        filling.merge(flat, part, f"part {number}")
    index = Index(searcher(flat, CPU, shard_over_gpus=False), blocks, rows, 1, rows, refuse)
    queries = Queries(vectors, documents, texts)
    everything, exactly, narrow = [], [], []
    for start in range(0, rows, batch):
        shard = queries.take(np.arange(start, min(start + batch, rows)))
        exactly.append(reranking.exact_search(shard, k, blocks, refuse))
        everything.append(reranking.find(shard, k, index, Width(1, rows), cells, Effort()))
        narrow.append(reranking.find(shard, k, index, Width(1, candidates), cells, Effort()))
    for found in (exactly, everything):
        assert [row for of in found for row in as_rows(of.keys)] == expected
        assert [row for of in found for row in of.removed.tolist()] == counted
    assert [len(row) for of in narrow for row in as_rows(of.keys)] == [len(row) for row in expected]


def test_distances_do_not_depend_on_how_they_are_computed() -> None:
    vectors = unit_vectors(300, 384, 1)
    whole = exact.squared_distances(vectors, vectors)
    rows, columns = np.divmod(np.arange(300 * 300), 300)
    wide = vectors.astype(np.float32)
    np.testing.assert_array_equal(exact.pair_distances(wide, wide, rows, columns), whole.ravel())
    np.testing.assert_array_equal(exact.squared_distances(vectors[7:8], vectors[100:111]), whole[7:8, 100:111])


@settings(deadline=None)
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
    """Whatever single precision makes of them: limits are distances that occur, so ties lie on them. Unit vectors
    times a power of 2 keep distances exact, see core/exact.py; any other large factor would not."""
    rng = np.random.default_rng(seed)
    vectors = (unit_vectors(rows, dimension, seed, grid) * np.float16(length)).astype(np.float16)
    queries = vectors[rng.integers(0, rows, 20)]
    distances = exact.squared_distances(queries, vectors)
    limits = distances[np.arange(20), rng.integers(0, rows, 20)]
    of_rows, columns, found = exact.near_pairs(exact.query_operand(queries), vectors, compare(vectors), limits)
    expected = np.nonzero(distances <= limits[:, None])
    np.testing.assert_array_equal((of_rows, columns), expected)
    np.testing.assert_array_equal(found, distances[expected])


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 4, width=32), st.integers(0, exact.MAX_CHUNKS - 1)), min_size=1, unique=True))
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


@pytest.fixture(scope="module")
def index() -> tuple[Index, Queries]:
    vectors = clustered(6000, 3)
    documents = np.arange(6000, dtype=np.uint64) // np.uint64(7)
    made = faiss.index_factory(32, "IVF32,PQ8")
    training.train(made, vectors.astype(np.float32), 0, "IVF32,PQ8", CPU)
    made.add(vectors.astype(np.float32))
    blocks = blocks_of(vectors, documents, 1000)
    return Index(searcher(made, CPU, shard_over_gpus=False), blocks, 6000, 32, 6000), Queries(vectors, documents)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99])
def test_the_chosen_width_reaches_its_target_on_queries_it_has_not_seen(
    index: tuple[Index, Queries], target: float
) -> None:
    of, everything = index
    sample, others = everything.take(np.arange(0, 6000, 8)), everything.take(np.arange(1, 6000, 8))
    made = tuning.trials(sample, reranking.exact_search(sample, 4, of.blocks).keys, of)
    choice = tuning.choose(made, target, of, least=4)
    assert choice.reached
    assert choice.recall > choice.lower_bound >= target
    truth, _ = exact.unpack(reranking.exact_search(others, 4, of.blocks).keys)
    found, _ = exact.unpack(reranking.find(others, 4, of, choice.width, 10**6, Effort()).keys)
    recall = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(truth.tolist(), found.tolist(), strict=True)])
    assert recall > target - 0.02
    assert recall > choice.recall - 0.03, "what the trial foretells, or more, since short rows are widened"


def test_more_recall_costs_more_and_what_cannot_be_had_is_said(index: tuple[Index, Queries]) -> None:
    of, everything = index
    sample = everything.take(np.arange(0, 6000, 8))
    made = tuning.trials(sample, reranking.exact_search(sample, 4, of.blocks).keys, of)
    costs = [tuning._cost(tuning.choose(made, target, of, 4).width, of) for target in (0.5, 0.8, 0.9, 0.99)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    truth = reranking.exact_search(sample, 4, of.blocks).keys
    hopeless = tuning.choose(tuning.trials(sample, truth, of, 1), 0.9999, of, 4)
    assert (hopeless.reached, hopeless.width.nprobe) == (False, 1)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.sampled_from([32, 96, 384, 768, 1000, 1021]))
def test_an_index_type_that_was_chosen_can_be_made_trained_and_merged(vectors: int, dimension: int) -> None:
    index_type, why = index_types.choose_index_type(vectors, dimension)
    made = index_types.make_index(index_type, dimension)
    index_types.check_mergeable(made, index_type)
    lists = faiss_index.list_count(made)
    assert lists == 1 or lists * index_types.LEAST_POINTS_PER_LIST <= vectors
    assert f"{vectors:,} vectors" in why


def test_a_rotation_for_parts_that_do_not_divide_the_dimension_is_refused() -> None:
    with pytest.raises(BadInputError, match="divides 32 dimensions into 7 parts"):
        index_types.make_index("OPQ7,Flat", 32)


def test_less_memory_gets_shorter_codes_until_none_fits() -> None:
    chosen = [index_types.choose_index_type(10**6, 384, megabytes * 10**6)[0] for megabytes in (100, 70, 50, 30)]
    assert chosen == ["IVF2048,PQ64", "IVF2048,PQ48", "IVF2048,PQ32", "IVF2048,PQ16"]
    with pytest.raises(BadInputError, match=r"no index of 1,000,000 vectors fits into 5,000,000 bytes: the smallest"):
        index_types.choose_index_type(10**6, 384, 5 * 10**6)
    assert index_types.choose_index_type(10_000, 384, 2**20)[0] != "Flat"
    # A small training sample makes fewer lists, not an index beyond the memory.
    few, _ = index_types.choose_index_type(10**6, 384, 100 * 10**6, trained_on=1000)
    assert few == "IVF16,PQ64"
    with pytest.raises(BadInputError, match="too few for codes"):
        index_types.choose_index_type(10**6, 384, 100 * 10**6, trained_on=100)


def test_an_index_takes_the_memory_it_was_chosen_for() -> None:
    index_type, why = index_types.choose_index_type(30_000, 96)
    vectors = np.asarray(unit_vectors(30_000, 96, 0), np.float32)
    made = index_types.make_index(index_type, 96)
    training.train(made, vectors[:5000], 0, index_type, CPU)
    made.add(vectors)
    said = float(re.findall(r"some ([\d.,]+) MiB", why)[0])
    assert len(faiss.serialize_index(made)) / 2**20 == pytest.approx(said, abs=0.6)


@pytest.mark.parametrize(
    ("index_type", "vectors", "reason"),
    [
        ("IVF1024,Flat", 1000, "1,000 vectors are too few to train 1,024 lists"),
        ("IVF64,PQ8", 200, "200 vectors are too few to train codes of 256 centroids"),
        ("IVF64,PQ8", 256, None),
        ("OPQ8,IVF4,Flat", 200, "200 vectors are too few to train a rotation for codes of 256 centroids"),
        ("PCA16,IVF4,Flat", 10, "10 vectors are too few to train 16 principal components"),
        ("PCA16,IVF4,Flat", 16, None),
        ("Flat", 0, None),
    ],
)
def test_what_is_too_small_to_train_is_what_faiss_refuses(index_type: str, vectors: int, reason: str | None) -> None:
    made = index_types.make_index(index_type, 32)
    assert index_types.too_small(made, vectors) == reason
    if vectors:
        try:
            training.train(made, unit_vectors(vectors, 32, 0).astype(np.float32), 0, index_type, CPU)
        except BadInputError:
            assert reason is not None
        else:
            assert reason is None


def test_more_vectors_get_more_lists() -> None:
    chosen = [index_types.choose_index_type(10**power, 384)[0] for power in (4, 5, 6, 8)]
    assert chosen == ["Flat", "IVF1024,PQ64", "IVF2048,PQ64", "IVF32768,PQ64"]
