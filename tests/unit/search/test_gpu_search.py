"""Search of whole vectors in the probed lists, as on a GPU, here on the CPU: equal to brute force over those lists."""

import itertools

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
from retro_ops.search import gpu_search, gpu_tiles, reranking, tuning
from retro_ops.search.exact import unpack
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.reranking import Effort, Index, Queries, Width

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
        truth = reranking.exact_search(queries.take(np.array([i])), k, whole)
        expected = [(distance, int(ids[j])) for distance, j in as_rows(truth.keys)[0]]
        assert as_rows(found.keys[i : i + 1])[0] == expected
        np.testing.assert_array_equal(found.removed[i], truth.removed[0])


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
    ids, distances = made.coarse(some.vectors.astype(np.float32), 40, 4)[::-1]
    assert (np.diff(distances, axis=1) >= 0).all()
    members = np.isin(unpack(found.keys)[0], ids)
    assert members.mean() > 0.95
    parts = [made.nearest(some.take(of), 4, 4).keys for of in np.array_split(np.arange(len(some)), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), found.keys)


def test_an_index_of_whole_vectors_is_tuned_and_searched_to_its_target(filled: tuple[faiss.Index, Queries]) -> None:
    index, queries = filled
    lists = faiss_index.lists_of(index, np.arange(6000))
    made = scan_of(queries.vectors, queries.documents, lists, [0, 2500, 6000])
    blocks = blocks_of(queries.vectors, queries.documents, 1000)
    of = Index(made.coarse, blocks, 6000, len(lists.centroids), 2**15, nearest=made.nearest)
    sample, others = queries.take(np.arange(0, 6000, 20)), queries.take(np.arange(1, 6000, 20))
    truth = reranking.exact_search(sample, 4, blocks)
    exactly = of.exact(sample, 4)
    np.testing.assert_array_equal(exactly.keys, truth.keys)
    np.testing.assert_array_equal(exactly.removed, truth.removed)
    choice = tuning.choose(tuning.trials(sample, truth.keys, of), 0.9, of, least=4)
    effort = Effort()
    found, _ = unpack(reranking.find(others, 4, of, Width(choice.width.nprobe, 1), 10**6, effort).keys)
    wanted, _ = unpack(of.exact(others, 4).keys)
    assert np.mean([len(set(a) & set(b)) / 4 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]) > 0.88


def test_rows_that_their_own_document_fills_are_widened_until_they_are_full() -> None:
    """A document of 3,000 copies: its chunks are nearer than any neighbour, and far more than are scored at first."""
    vectors = clustered(4000, 5)
    vectors[:3000] = vectors[0]
    documents = np.concatenate((np.zeros(3000), np.arange(1000) + 1)).astype(np.uint64)
    lists = Lists(np.zeros((1, 32), np.float32), np.zeros(4000, np.int32), np.arange(4000), None)
    made = scan_of(vectors, documents, lists, [0, 4000])
    queries = Queries(vectors, documents).take(np.array([0, 2999, 3500]))
    found, truth = made.nearest(queries, 4, 1), reranking.exact_search(queries, 4, blocks_of(vectors, documents, 999))
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
        wide = some.vectors.astype(np.float32)
        np.testing.assert_array_equal(*(made.coarse(wide, 20, nprobe)[1] for made in (alone, shared)))


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
    truth = reranking.exact_search(queries, k, blocks_of(vectors, documents, 100))
    np.testing.assert_array_equal(found.keys, truth.keys)


def test_work_is_cut_to_what_memory_allows_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, documents = clustered(2000, 5), np.arange(2000, dtype=np.uint64) // np.uint64(40)
    lists = Lists(np.zeros((1, 32), np.float32), np.zeros(2000, np.int32), np.arange(2000), None)
    made = scan_of(vectors, documents, lists, [0, 2000])
    queries = Queries(vectors[::10], documents[::10])
    whole = made.nearest(queries, 4, 1)
    scored: list[int] = []
    exactly = gpu_tiles._exact
    monkeypatch.setattr(gpu_tiles, "EXACT_NUMBERS", 2**13)
    monkeypatch.setattr(gpu_tiles, "GATHERED_NUMBERS", 2**16)
    monkeypatch.setattr(gpu_tiles, "OWN_PAIRS", 50)
    monkeypatch.setattr(gpu_tiles, "_exact", lambda *of: (scored.append(len(of[2])), exactly(*of))[1])
    cut = made.nearest(queries, 4, 1)
    np.testing.assert_array_equal(cut.keys, whole.keys)
    np.testing.assert_array_equal(cut.removed, whole.removed)
    assert len(scored) > 20
