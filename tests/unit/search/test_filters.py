"""Measures of likeness and filters, against their plain definitions."""

import itertools
from collections import Counter

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vectors import as_rows, blocks_of, brute_force, unit_vectors

from retro_ops.compute.device import Device
from retro_ops.index import filling
from retro_ops.index.faiss_index import Lists
from retro_ops.search import exact, filters, reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.faiss_search import searcher
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.hits import Queries
from retro_ops.search.reranking import Effort, Index, Width

CPU = Device("cpu", "test")


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


@settings(max_examples=60)
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


@settings(max_examples=30)
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
    of, near = np.indices((rows, rows)).reshape(2, -1)
    measures = {2: (filters.overlap, overlap), 3: (filters.longest_run, run), 4: (filters.ngram_similarity, ngrams)}
    over = {
        code: (measure(texts[of], texts[near], PAD) > limit).reshape(rows, rows)
        for code, (measure, limit) in measures.items()
        if limit is not None
    }

    def why(i: int, j: int) -> int:
        if documents[i] == documents[j]:
            return filters.SAME_DOCUMENT
        return next((code for code in over if over[code][i, j]), 0)

    expected, counted = [], []
    everyone = brute_force(vectors, np.arange(rows, dtype=np.uint64), rows)
    distances = exact.squared_distances(vectors, vectors)
    for i, hits in enumerate(everyone):
        ranked = sorted([*hits, (float(distances[i, i]), i)])
        kept = [hit for hit in ranked if why(i, hit[1]) == 0][:k]
        limit = kept[-1] if len(kept) == k else (np.inf, 0)
        expected.append(kept)
        counted.append([sum(why(i, j) == code and (d, j) < limit for d, j in ranked) for code in (1, 2, 3, 4)])

    def refuse(tokens: filters.Tokens, of: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        return filters.reasons(limits, tokens[of], texts[ids], PAD)

    blocks = blocks_of(vectors, documents, block)
    flat = faiss.IndexFlatL2(8)
    for number, vectors_of_part in enumerate(np.array_split(vectors.astype(np.float32), parts)):
        part = faiss.IndexFlatL2(8)
        part.add(vectors_of_part)
        filling.merge(flat, part, f"part {number}")
    index = Index(searcher(flat, CPU, shard_over_gpus=False), blocks, rows, 1, rows, refuse)
    cuts = [rows * part // parts for part in range(parts + 1)]
    spans = [Span(start, end, "cpu") for start, end in itertools.pairwise(cuts) if start < end]
    lists = Lists(np.zeros((1, 8), np.float32), np.zeros(rows, np.int32), np.arange(rows), None)
    on_device = Index(None, blocks, rows, 1, rows, refuse, vectors=Scan(lists, blocks, spans))
    queries = Queries(vectors, documents, texts)
    everything, exactly, narrow, by_vectors = [], [], [], []
    for start in range(0, rows, batch):
        shard = queries.take(np.arange(start, min(start + batch, rows)))
        exactly.append(exact_search(shard, k, blocks, refuse))
        everything.append(reranking.find(shard, k, index, Width(1, rows), cells, Effort()))
        narrow.append(reranking.find(shard, k, index, Width(1, candidates), cells, Effort()))
        by_vectors.append(reranking.find(shard, k, on_device, Width(1, candidates), cells, Effort()))
    for found in (exactly, everything, by_vectors):
        assert [row for of in found for row in as_rows(of.keys)] == expected
        assert [row for of in found for row in of.removed.tolist()] == counted
    assert [len(row) for of in narrow for row in as_rows(of.keys)] == [len(row) for row in expected]
