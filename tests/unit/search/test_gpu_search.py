"""Search of whole vectors in the probed lists, as on a GPU, here on the CPU: equal to brute force over those lists."""

import itertools
from collections.abc import Iterable, Iterator

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vectors import as_rows, blocks_of, clustered, unit_vectors

from retro_ops.compute.device import Device
from retro_ops.index import faiss_index, index_types, training
from retro_ops.index.faiss_index import Lists
from retro_ops.search import brute_force, exact, gpu_nearest, gpu_search, reranking, tuning
from retro_ops.search.exact import NOTHING, unpack
from retro_ops.search.filters import Tokens
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.hits import Block, Queries
from retro_ops.search.reranking import Effort, Index, Width

CPU = Device("cpu", "test")


def scan_of(
    vectors: NDArray[np.float16], documents: NDArray[np.uint64], lists: Lists, cuts: list[int], block: int = 1000
) -> Scan:
    spans = [Span(a, b, "cpu") for a, b in itertools.pairwise(cuts)]
    return Scan(lists, blocks_of(vectors, documents, block), spans)


@settings(max_examples=60)
@given(
    st.integers(1, 150), st.sampled_from([2, 8, 24]), st.integers(1, 5), st.integers(1, 60), st.integers(1, 7),
    st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_it_finds_the_nearest_of_the_probed_lists_with_ties_however_divided(
    rows: int, dimension: int, k: int, block: int, count: int, parts: int, nprobe: int, grid: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(rows, dimension, seed, grid)
    documents = np.sort(rng.integers(0, max(1, rows // 3), rows)).astype(np.uint64)
    of = rng.integers(0, count, rows).astype(np.int32)
    centroids = rng.normal(size=(count, dimension)).astype(np.float32)
    lists = Lists(centroids, of, np.arange(rows), None)
    cuts = sorted({0, rows, *rng.integers(0, rows + 1, parts - 1).tolist()})
    queries, nprobe = Queries(vectors, documents), min(nprobe, count)
    made = scan_of(vectors, documents, lists, cuts, block)
    found = made.nearest(queries, k, nprobe)
    probes = np.broadcast_to(np.arange(count), (rows, count))
    if nprobe < count:
        probes = made._probes(torch.from_numpy(vectors), nprobe, "cpu").numpy()
    for i in range(rows):
        member = np.isin(of, probes[i])
        ids = np.flatnonzero(member)
        whole = blocks_of(vectors[ids], documents[ids], rows)
        truth = brute_force.exact_search(queries.take(np.array([i])), k, whole)
        expected = [(distance, int(ids[j])) for distance, j in as_rows(truth.keys)[0]]
        assert as_rows(found.keys[i : i + 1])[0] == expected
        np.testing.assert_array_equal(found.removed[i], truth.removed[0])
    width = k + seed % 7
    keys, own = made.hits(queries, width, nprobe)
    for i in range(rows):
        member = np.isin(of, probes[i])
        distances = exact.squared_distances(vectors[i : i + 1], vectors)
        everything = exact.pack(distances, np.arange(rows)[None], member[None])[0]
        nearest = set(np.sort(everything)[:width].tolist()) - {int(exact.NOTHING)}
        others, mine = set(keys[i].tolist()) - {int(exact.NOTHING)}, set(own.keys[own.rows == i].tolist())
        assert others | mine == nearest
        assert mine == {key for key in nearest if documents[key & 0xFFFFFFFF] == documents[i]}


@pytest.fixture(scope="module", params=["IVF32,PQ8", "PCAR24,IVF32,PQ8", "Flat"])
def filled(request: pytest.FixtureRequest) -> tuple[faiss.Index, Queries]:
    vectors = clustered(6000, 3)
    made = index_types.make_index(request.param, 32)
    training.train(made, vectors.astype(np.float32), 0, request.param, CPU)
    made.add(vectors.astype(np.float32))
    return made, Queries(vectors, np.arange(6000, dtype=np.uint64) // np.uint64(7))


def test_it_has_the_recall_of_the_lists_and_depends_on_no_batch(filled: tuple[faiss.Index, Queries]) -> None:
    """Includes an index that transforms its vectors; the lists are those that faiss probes."""
    index, queries = filled
    lists = faiss_index.lists_of(index, np.arange(6000))
    made = scan_of(queries.vectors, queries.documents, lists, [0, 6000])
    some = queries.take(np.arange(0, 6000, 10))
    found = made.nearest(some, 4, 4)
    if len(lists.centroids) > 1:
        space = some.vectors.astype(np.float32)
        if lists.project:
            space = lists.project(space)
        flat = faiss.IndexFlatL2(lists.centroids.shape[1])
        flat.add(lists.centroids)
        by_faiss, ours = flat.search(space, 4)[1], made._probes(torch.from_numpy(some.vectors), 4, "cpu").numpy()
        assert (np.sort(by_faiss) == np.sort(ours)).all(axis=1).mean() > 0.95
    keys, own = made.hits(some, 40, 4)
    assert ((keys != NOTHING).sum(axis=1) + np.bincount(own.rows, minlength=len(some)) == 40).all()
    assert np.isin(found.keys, keys).mean() > 0.95
    parts = [made.nearest(some.take(of), 4, 4).keys for of in np.array_split(np.arange(len(some)), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), found.keys)


def test_an_index_of_whole_vectors_is_tuned_and_searched_to_its_target(filled: tuple[faiss.Index, Queries]) -> None:
    index, queries = filled
    lists = faiss_index.lists_of(index, np.arange(6000))
    made = scan_of(queries.vectors, queries.documents, lists, [0, 2500, 6000])
    blocks = blocks_of(queries.vectors, queries.documents, 1000)
    of = Index(None, blocks, 6000, len(lists.centroids), 2**15, vectors=made)
    sample, others = queries.take(np.arange(0, 6000, 20)), queries.take(np.arange(1, 6000, 20))
    truth = brute_force.exact_search(sample, 4, blocks)
    exactly = of.exact(sample, 4)
    np.testing.assert_array_equal(exactly.keys, truth.keys)
    np.testing.assert_array_equal(exactly.removed, truth.removed)
    choice = tuning.choose(tuning.trials(sample, truth.keys, of), 0.9, of, least=4)
    effort = Effort()
    found, _ = unpack(reranking.find(others, 4, of, Width(choice.width.nprobe, 1), 10**6, effort).keys)
    wanted, _ = unpack(of.exact(others, 4).keys)
    assert np.mean([len(set(a) & set(b)) / 4 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]) > 0.88


@pytest.mark.parametrize("refused", [0, 3])
def test_trials_follow_from_lists_as_if_each_had_been_searched(
    filled: tuple[faiss.Index, Queries], refused: int
) -> None:
    """With a filter too, for which nearer hits are candidates as well: here of every third chunk."""
    index, queries = filled
    lists = faiss_index.lists_of(index, np.arange(6000))
    made = scan_of(queries.vectors, queries.documents, lists, [0, 6000])
    blocks = blocks_of(queries.vectors, queries.documents, 1000)
    sample = Queries(queries.vectors[::40], queries.documents[::40], np.zeros((150, 1), np.uint16))

    def every_third(tokens: Tokens, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.where(ids % 3 == 0, refused, 0).astype(np.uint8)

    hit_filter = every_third if refused else None
    of = Index(None, blocks, 6000, len(lists.centroids), 2**15, hit_filter, vectors=made)
    truth, nearer = of.nearer_hits(sample, 4)
    for trial in tuning.trials(sample, truth, of, nearer=nearer):
        for candidates in (4, 10, 300):
            width = Width(trial.nprobe, candidates)
            found = reranking.candidates(sample, 4, of, width, 10**6).keys
            share = np.mean([len(set(a) & set(b)) / 4 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
            assert trial.recall(candidates if refused else 4) == pytest.approx(share, abs=1e-12)


class CountedReads:
    """Query rows that count how often a row is read."""

    def __init__(self, queries: Queries, reads: NDArray[np.int64]) -> None:
        self._queries, self._reads = queries, reads

    def __len__(self) -> int:
        return len(self._queries)

    def read(self, start: int, stop: int) -> Queries:
        self._reads[start:stop] += 1
        return self._queries.read(start, stop)

    def each(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Queries]:
        return (self.read(*of) for of in ranges)

    def select(self, rows: NDArray[np.int64]) -> "Queries":
        return self._queries.select(rows)

    def read_tokens(self) -> Tokens:
        return self._queries.read_tokens()


def test_vectors_that_do_not_fit_are_read_once_however_many_queries_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the queries once for each part."""
    monkeypatch.setattr(gpu_search, "MOST_ROWS", 100)
    monkeypatch.setattr(gpu_search, "PROBE_ROWS", 100)
    vectors, documents = clustered(3000, 6), np.arange(3000, dtype=np.uint64) // np.uint64(9)
    lists = Lists(clustered(8, 7).astype(np.float32), (np.arange(3000) % 8).astype(np.int32), np.arange(3000), None)
    whole = blocks_of(vectors, documents, 500)
    read = np.zeros(3000, np.int64)

    def blocks(wanted: NDArray[np.int64] | None) -> Iterator[Block]:
        assert wanted is not None
        read[wanted] += 1
        return whole(wanted)

    made = Scan(lists, blocks, [Span(start, start + 750, "cpu") for start in range(0, 3000, 750)])
    reads = np.zeros(3000, np.int64)
    queries = Queries(vectors, documents)
    found = made.nearest(CountedReads(queries, reads), 4, 3)
    assert (read == 1).all()
    assert (reads == 4).all()
    at_once = scan_of(vectors, documents, lists, [0, 3000]).nearest(queries, 4, 3)
    np.testing.assert_array_equal(found.keys, at_once.keys)
    np.testing.assert_array_equal(found.removed, at_once.removed)


def test_rows_that_their_own_document_fills_are_widened_until_they_are_full() -> None:
    """A document of 3,000 copies: its chunks are nearer than any neighbour, and far more than are scored at first."""
    vectors = clustered(4000, 5)
    vectors[:3000] = vectors[0]
    documents = np.concatenate((np.zeros(3000), np.arange(1000) + 1)).astype(np.uint64)
    lists = Lists(np.zeros((1, 32), np.float32), np.zeros(4000, np.int32), np.arange(4000), None)
    made = scan_of(vectors, documents, lists, [0, 4000])
    queries = Queries(vectors, documents).take(np.array([0, 2999, 3500]))
    found, truth = made.nearest(queries, 4, 1), brute_force.exact_search(queries, 4, blocks_of(vectors, documents, 999))
    np.testing.assert_array_equal(found.keys, truth.keys)
    np.testing.assert_array_equal(found.removed, truth.removed)
    assert found.removed[:2, 0].tolist() == [3000, 3000]


def test_vectors_are_divided_over_devices_and_into_as_many_parts_as_fit() -> None:
    lists = Lists(np.zeros((2, 384), np.float32), np.zeros(10**6, np.int32), np.arange(10**6), None)
    for devices, gigabytes, parts in ((["cpu"], 2, 1), (["a", "b"], 0.5, 2), (["a", "b"], 0.3, 4), (["cpu"], 0.1, 9)):
        made = gpu_search.spans(lists, 384, devices, int(gigabytes * 10**9))
        assert len(made) == parts
        assert [made[0].first, *(span.end for span in made)] == [*(span.first for span in made), 10**6]
        assert {span.device for span in made} == set(devices)
    assert gpu_search.spans(lists, 384, ["a", "b"], 2 * 10**9) == [Span(0, 10**6, "a"), Span(0, 10**6, "b")]


def test_devices_that_hold_everything_share_the_queries() -> None:
    vectors, documents = clustered(2000, 6), np.arange(2000, dtype=np.uint64) // np.uint64(9)
    lists = Lists(clustered(8, 7).astype(np.float32), (np.arange(2000) % 8).astype(np.int32), np.arange(2000), None)
    blocks, queries = blocks_of(vectors, documents, 500), Queries(vectors, documents)
    alone = Scan(lists, blocks, [Span(0, 2000, "cpu")])
    shared = Scan(lists, blocks, [Span(0, 2000, "cpu:0"), Span(0, 2000, "cpu")])
    for rows, nprobe in ((2000, 3), (2000, 8), (7, 3), (1, 8)):
        some = queries.take(slice(0, rows))
        ones, both = (made.nearest(some, 4, nprobe) for made in (alone, shared))
        np.testing.assert_array_equal(both.keys, ones.keys)
        np.testing.assert_array_equal(both.removed, ones.removed)
        (keys, own), (keys_of_both, own_of_both) = (made.hits(some, 20, nprobe) for made in (alone, shared))
        np.testing.assert_array_equal(keys, keys_of_both)
        np.testing.assert_array_equal(own.counts(rows), own_of_both.counts(rows))


@pytest.mark.parametrize(("count", "k"), [(64, 2), (3, 5), (4, 4)])
def test_vectors_that_are_all_alike_or_too_few_are_settled(count: int, k: int) -> None:
    """A part may hold whole tiles, and nothing of the query's own document."""
    rows = 64
    vectors = np.tile(unit_vectors(1, 8, 0, grid=False), (rows, 1))
    if count < rows:
        vectors = unit_vectors(count, 8, 0, grid=False)
    documents = np.arange(len(vectors), dtype=np.uint64)
    lists = Lists(np.zeros((1, 8), np.float32), np.zeros(len(vectors), np.int32), np.arange(len(vectors)), None)
    queries = Queries(unit_vectors(5, 8, 1, grid=False), np.arange(1000, 1005, dtype=np.uint64))
    found = scan_of(vectors, documents, lists, [0, len(vectors)]).nearest(queries, k, 1)
    truth = brute_force.exact_search(queries, k, blocks_of(vectors, documents, 100))
    np.testing.assert_array_equal(found.keys, truth.keys)


def test_work_is_cut_to_what_memory_allows_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, documents = clustered(2000, 5), np.arange(2000, dtype=np.uint64) // np.uint64(40)
    lists = Lists(np.zeros((1, 32), np.float32), np.zeros(2000, np.int32), np.arange(2000), None)
    made = scan_of(vectors, documents, lists, [0, 2000])
    queries = Queries(vectors[::10], documents[::10])
    whole = made.nearest(queries, 4, 1)
    scored: list[int] = []
    exactly = gpu_nearest._exact
    monkeypatch.setattr(gpu_nearest, "EXACT_NUMBERS", 2**13)
    monkeypatch.setattr(gpu_nearest, "GATHERED_NUMBERS", 2**16)
    monkeypatch.setattr(gpu_nearest, "OWN_PAIRS", 50)
    monkeypatch.setattr(gpu_nearest, "MOST_BEST", 2**10)
    monkeypatch.setattr(gpu_nearest, "_exact", lambda *of: (scored.append(len(of[2])), exactly(*of))[1])
    cut = made.nearest(queries, 4, 1)
    np.testing.assert_array_equal(cut.keys, whole.keys)
    np.testing.assert_array_equal(cut.removed, whole.removed)
    assert len(scored) > 20
