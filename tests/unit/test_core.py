"""Pure functions against the plainest statement of what they do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retro_ops.compute import device
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.index.sampling import sample_rows
from retro_ops.quality import rules
from retro_ops.search import seed_profile
from retro_ops.tokens.chunking import chunk_documents, token_dtype
from retro_ops.tokens.packing import from_lists

DOCUMENTS = st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=8)


@given(DOCUMENTS, st.integers(1, 7), st.integers(0, 9))
def test_chunks_equal_a_naive_loop(documents: list[list[int]], size: int, pad: int) -> None:
    rows, starts, owners = [], [], []
    for number, ids in enumerate(documents):
        padded = ids + [pad] * (-len(ids) % size) or [pad] * size
        starts.append(len(rows))
        for start in range(0, len(padded), size):
            rows.append(padded[start : start + size])
            owners.append(number)
    found = chunk_documents(from_lists(documents, len(documents)), size, pad, np.dtype(np.uint16))
    assert found.chunks.tolist() == rows
    assert found.seq2chunk.tolist() == starts
    assert found.chunk2seq.tolist() == owners
    assert (found.chunks.dtype, found.seq2chunk.dtype, found.chunk2seq.dtype) == (np.uint16, np.int64, np.int32)


def test_the_token_dtype_never_wraps() -> None:
    assert token_dtype(65_536, "auto") == np.uint16
    assert token_dtype(65_537, "auto") == np.uint32
    with pytest.raises(BadInputError, match="uint16 holds 65,536"):
        token_dtype(65_537, "uint16")


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 600), st.integers(0, 3))
def test_a_sample_is_distinct_sorted_complete_and_repeatable(counts: list[int], wanted: int, seed: int) -> None:
    sizes = np.array(counts, np.int64)
    found = sample_rows(sizes, wanted, seed)
    assert sum(map(len, found)) == min(wanted, sum(counts))
    for rows, count in zip(found, counts, strict=True):
        assert np.array_equal(rows, np.unique(rows))
        assert not len(rows) or rows[-1] < count
    assert all(np.array_equal(a, b) for a, b in zip(found, sample_rows(sizes, wanted, seed), strict=True))


def test_a_sample_is_uniform_over_shards_of_unequal_size() -> None:
    sizes = np.array([100, 900], np.int64)
    share = np.mean([len(sample_rows(sizes, 50, seed)[0]) for seed in range(400)])
    assert share == pytest.approx(5, abs=0.5)


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


def test_each_rule_fires_on_what_breaks_it_and_not_on_good_blocks() -> None:
    starts, owners = np.array([0, 2, 3]), np.array([0, 0, 1, 2, 2])
    assert not rules.check_seq2chunk(starts, -1, 5)
    assert rules.check_seq2chunk(np.array([0, 0, 3]), -1, 5)
    assert rules.check_seq2chunk(np.array([1, 2]), -1, 5)
    assert rules.check_seq2chunk(np.array([0, 5]), -1, 5)
    assert not rules.check_chunk2seq(owners, 0, -1, starts, 3)
    assert rules.check_chunk2seq(np.array([0, 2]), 0, -1, np.array([0, 1, 1]), 3)
    assert rules.check_chunk2seq(owners, 0, -1, np.array([0, 1, 3]), 3)
    assert rules.check_chunk2seq(owners, 0, -1, starts, 2)
    unit = np.eye(4, dtype=np.float16)
    assert not rules.check_embeddings(unit)
    assert rules.check_embeddings(unit * np.float16(0.9))
    assert rules.check_embeddings(unit * np.float16(np.nan))
    own = np.array([0]), np.array([2])
    assert not rules.check_neighbours(np.array([[4, 2, -1]]), 5, *own)
    for bad in ([5, 2, -1], [-2, 2, 3], [-1, 2, -1], [1, 2, 3], [3, 3, -1]):
        assert rules.check_neighbours(np.array([bad]), 5, *own), bad
    row, near = np.array([[4, 2, -1]]), np.array([[0.1, 0.2, np.inf]], np.float32)
    assert not rules.check_distances(near, row)
    assert rules.check_distances(near[:, ::-1], row)
    assert rules.check_distances(np.array([[0.2, 0.1, np.inf]], np.float32), row)


def test_a_gpu_that_is_not_there_is_an_error_with_a_hint() -> None:
    if device.choose("auto", "faiss").chosen == "cuda":
        assert device.choose("cuda", "faiss").why == "asked for"
        return
    for library in ("torch", "faiss"):
        with pytest.raises(ConfigurationError, match="What to do"):
            device.choose("cuda", library)
        assert "sees no GPU" in device.choose("auto", library).why
