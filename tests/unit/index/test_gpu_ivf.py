"""Training and filling as a GPU does it, here on the CPU: as good as faiss' own, and plain faiss indexes."""

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vectors import clustered

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index, filling, gpu_ivf, index_types, training

CPU = Device("cpu", "test")
TYPES = ("IVF32,PQ8", "IVF32,Flat", "OPQ8,IVF32,PQ8", "PCAR16,IVF32,PQ8")


def shorten(index: faiss.Index) -> None:
    """Training of a rotation, which takes minutes here."""
    if isinstance(index, faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        if isinstance(rotation, faiss.OPQMatrix):
            rotation.niter, rotation.niter_pq_0, rotation.niter_pq = 2, 4, 1


def trained(index_type: str, how: str, seed: int) -> faiss.Index:
    index = index_types.make_index(index_type, 32)
    inner = faiss_index.inner_index(index)
    if isinstance(inner, faiss.IndexIVFPQ):
        inner.pq.cp.niter = 5
    shorten(index)
    vectors = clustered(4000, 1)
    if how == "faiss":
        training.train(index, vectors, seed, index_type, CPU)
    else:
        training.train_on(["cpu"], index, vectors, seed)
    return index


def filled(index: faiss.Index, vectors: NDArray[np.float16], how: str, block: int) -> faiss.Index:
    copy, blocks = faiss.clone_index(index), [vectors[i : i + block] for i in range(0, len(vectors), block)]
    if how == "faiss":
        filling.fill(copy, blocks, lambda _: None, CPU)
    else:
        filling.fill_on(["cpu"], copy, blocks, lambda _: None)
    return copy


def recall(index: faiss.Index, vectors: NDArray[np.float16], queries: NDArray[np.float16]) -> float:
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors.astype(np.float32))
    faiss_index.inner_index(index).nprobe = 4
    found, truth = (i.search(queries.astype(np.float32), 10)[1].tolist() for i in (index, flat))
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize("index_type", ["IVF32,PQ8", "OPQ8,IVF32,PQ8"])
def test_it_fits_as_well_as_faiss_own_training(index_type: str) -> None:
    vectors, queries = clustered(8000, 2), clustered(500, 3)

    def figures(how: str) -> NDArray[np.float64]:
        made = [trained(index_type, how, seed) for seed in range(2)]
        found = [recall(filled(index, vectors, how, 3000), vectors, queries) for index in made]
        return np.array([np.mean([faiss_index.quantisation_error(index, vectors) for index in made]), np.mean(found)])

    error, found = (figures("torch") / figures("faiss")).tolist()
    assert error < 1.01
    assert found > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("index_type", TYPES)
def test_it_is_deterministic_by_seed_and_codes_depend_on_no_shard_before(index_type: str) -> None:
    vectors = clustered(2500, 4)
    first, again, other = (trained(index_type, "torch", seed) for seed in (0, 0, 1))
    assert faiss.serialize_index(first).tobytes() == faiss.serialize_index(again).tobytes()
    assert faiss.serialize_index(first).tobytes() != faiss.serialize_index(other).tobytes()
    whole = faiss.clone_index(first)
    for shard in (vectors[:1100], vectors[1100:]):
        filling.fill_on(["cpu"], whole, [shard[:1000], shard[1000:]], lambda _: None)
    merged = faiss.clone_index(first)
    for shard in (vectors[:1100], vectors[1100:]):
        filling.merge(merged, filled(first, shard, "torch", 1000), "part")
    assert faiss.serialize_index(whole).tobytes() == faiss.serialize_index(merged).tobytes()


def test_the_number_of_devices_changes_no_bit() -> None:
    vectors = clustered(2500, 4)
    blocks = [vectors[i : i + 400] for i in range(0, 2500, 400)]
    made = []
    for devices in (["cpu"], ["cpu"] * 3):
        index, added = index_types.make_index("IVF32,PQ8", 32), list[int]()
        index.cp.niter = index.pq.cp.niter = 2
        training.train_on(devices, index, vectors, 0)
        filling.fill_on(devices, index, blocks, added.append)
        assert added == [len(block) for block in blocks]
        made.append(faiss.serialize_index(index).tobytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("index_type", TYPES)
def test_it_codes_as_faiss_does_but_for_near_ties(index_type: str) -> None:
    index, vectors = trained(index_type, "faiss", 0), clustered(3000, 5)
    ours, theirs = (filled(index, vectors, how, 1024) for how in ("torch", "faiss"))
    assert ours.ntotal == theirs.ntotal == 3000
    lists = [faiss_index.lists_of(made, np.arange(3000)).of for made in (ours, theirs)]
    assert (lists[0] == lists[1]).mean() > 0.995
    wide, same = faiss_index.projection(index)(vectors.astype(np.float32)), lists[0] == lists[1]
    inner = [faiss_index.inner_index(made) for made in (ours, theirs)]
    codes = [made.reconstruct_n(0, 3000) if made.make_direct_map() is None else None for made in inner]
    assert (codes[0][same] == codes[1][same]).mean() > 0.99
    errors = [((code - wide) ** 2).sum() for code in codes]
    assert errors[0] == pytest.approx(errors[1], rel=0.001, abs=1e-6)


def test_only_plain_lists_of_whole_vectors_or_bytes_are_for_tensor_cores() -> None:
    no = (
        "Flat",
        "PQ8",
        "L2norm,IVF32,PQ8",
        "PCAW16,IVF32,PQ8",
        "OPQ8,IVF32,PQ8x4",
        "IVF32,PQ8x4fs",
        "IVF32,PQ8x4",
        "IVF32,SQ8",
        "IVF32_HNSW8,PQ8",
        "IVF32,PQ4+8",
    )
    assert all(training.on_tensor_cores(index_types.make_index(of, 32)) for of in TYPES)
    assert not any(training.on_tensor_cores(index_types.make_index(of, 32)) for of in no)


def test_the_rotation_loses_less_where_some_dimensions_say_more_than_others() -> None:
    spread = np.geomspace(1, 0.05, 32)
    vectors = (np.random.default_rng(0).normal(size=(4000, 32)) * spread / np.linalg.norm(spread)).astype(np.float16)
    errors = []
    for index_type in ("IVF1,PQ4", "OPQ4,IVF1,PQ4"):
        index = index_types.make_index(index_type, 32)
        shorten(index)
        training.train_on(["cpu"], index, vectors, 0)
        errors.append(faiss_index.quantisation_error(index, vectors))
    assert errors[1] < 0.8 * errors[0]


def test_numbers_that_are_not_finite_are_refused() -> None:
    vectors = clustered(2000, 1)
    vectors[7, 3] = np.nan
    with pytest.raises(BadInputError, match="not finite"):
        training.train_on(["cpu"], index_types.make_index("IVF4,PQ8", 32), vectors, 0)


def test_codes_of_lists_take_as_many_bytes_as_faiss_wants() -> None:
    for lists in (1, 2, 256, 257):
        index = index_types.make_index(f"IVF{lists},Flat", 8)
        coder = gpu_ivf.Coder(torch.randn((1, lists, 8), generator=torch.Generator().manual_seed(0)), None)
        codes = coder.encode(torch.zeros((3, 8)))
        assert codes.shape == (3, faiss.downcast_index(index).coarse_code_size() + 32)
