"""Index types: which one is chosen, what it takes, what is too small for it."""

import re

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import unit_vectors

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index, index_types, training

CPU = Device("cpu", "test")


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "index_type",
    [
        "IVF0,Flat",
        "PCA0,Flat",
        "OPQ0,IVF4,PQ4",
        "IVF4,PQ8x0",
        "SQ0",
        "IVF4_HNSW0,Flat",
        "IVF99999999999,Flat",
        "x" * 9999,
    ],
)
def test_a_part_of_no_size_is_refused(index_type: str) -> None:
    with pytest.raises(BadInputError, match="index type"):
        index_types.make_index(index_type, 32)
    for sound in ("IVF10,Flat", "PCA10,IVF100,PQ10", "IVF4,PQ8x10"):
        index_types.make_index(sound, 40)


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31, 3_000_000_000, 2**63 - 1])
def test_any_seed_trains(seed: int) -> None:
    index = index_types.make_index("IVF4,PQ4x4", 16)
    vectors = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    training.train(index, vectors, seed, "IVF4,PQ4x4", CPU)
    assert index.is_trained


def test_too_few_vectors_are_blamed_only_where_they_are_too_few() -> None:
    vectors = np.full((400, 16), np.nan, np.float32)
    with pytest.raises(BadInputError, match="NaN") as caught:
        training.train(index_types.make_index("IVF4,Flat", 16), vectors, 0, "IVF4,Flat", CPU)
    assert "too few" not in str(caught.value)
