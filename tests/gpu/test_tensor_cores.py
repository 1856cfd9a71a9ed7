"""Training, filling and search on tensor cores give what the CPU gives."""

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vectors import blocks_of

from retro_ops.compute.device import Device
from retro_ops.compute.fp16_scores import ROUNDING, on, prepare, query_operand
from retro_ops.index import faiss_index, filling, index_types, training
from retro_ops.search import brute_force, gpu_best, gpu_part
from retro_ops.search.exact import comparing
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.hits import Queries

pytestmark = pytest.mark.gpu

CPU, GPU = Device("cpu", "test"), Device("cuda", "test")
ROWS, DIMENSION, LISTS = 60_000, 384, 128


@pytest.fixture(scope="module")
def queries() -> Queries:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((600, DIMENSION))
    drawn = centres[rng.integers(600, size=ROWS)] + 0.8 * rng.standard_normal((ROWS, DIMENSION))
    unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return Queries(unit.astype(np.float16), np.arange(ROWS, dtype=np.uint64) // np.uint64(10))


def trained(index_type: str, vectors: NDArray[np.float16], where: Device) -> faiss.Index:
    index = index_types.make_index(index_type, DIMENSION)
    training.train(index, vectors[:40_000], 0, index_type, where)
    return index


def filled(index: faiss.Index, vectors: NDArray[np.float16], where: Device) -> faiss.Index:
    copy = faiss.clone_index(index)
    filling.fill(copy, [vectors[i : i + 16_384] for i in range(0, len(vectors), 16_384)], lambda _: None, where)
    return copy


@pytest.mark.parametrize("index_type", [f"IVF{LISTS},PQ32", f"IVF{LISTS},Flat", f"OPQ32,IVF{LISTS},PQ32"])
def test_training_is_deterministic_and_codes_are_those_of_the_cpu(index_type: str, queries: Queries) -> None:
    index, same = (trained(index_type, queries.vectors, GPU) for _ in range(2))
    assert np.array_equal(faiss.serialize_index(index), faiss.serialize_index(same))
    ours, again, theirs = (filled(index, queries.vectors, where) for where in (GPU, GPU, CPU))
    assert np.array_equal(faiss.serialize_index(ours), faiss.serialize_index(again))
    lists = [faiss_index.lists_of(made, np.arange(ROWS)).of for made in (ours, theirs)]
    assert (lists[0] == lists[1]).mean() > 0.999
    wide = faiss_index.projection(index)(queries.vectors[:5000].astype(np.float32))
    errors = []
    for made in map(faiss_index.inner_index, (ours, theirs)):
        made.make_direct_map()
        errors.append(float(((made.reconstruct_n(0, 5000) - wide) ** 2).sum()))
    assert errors[0] == pytest.approx(errors[1], rel=0.001, abs=1e-3)


def test_codes_trained_on_the_gpu_are_as_good(queries: Queries) -> None:
    errors = [
        faiss_index.quantisation_error(trained(f"IVF{LISTS},PQ32", queries.vectors, where), queries.vectors[40_000:])
        for where in (GPU, CPU)
    ]
    assert None not in errors
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_search_equals_brute_force_and_depends_on_no_division(queries: Queries) -> None:
    prepare(GPU)
    index = filled(trained(f"IVF{LISTS},PQ32", queries.vectors, GPU), queries.vectors, GPU)
    lists, blocks = faiss_index.lists_of(index, np.arange(ROWS)), blocks_of(queries.vectors, queries.documents, 8192)
    whole = Scan(lists, blocks, [Span(0, ROWS, "cuda:0")])
    parts = Scan(lists, blocks, [Span(0, 20_001, "cuda:0"), Span(20_001, ROWS, "cuda:0")])
    some = queries.take(np.arange(0, ROWS, 100))
    truth = brute_force.exact_search(some, 4, blocks)
    for made in (whole, parts):
        found = made.nearest(some, 4, LISTS)
        np.testing.assert_array_equal(found.keys, truth.keys)
        np.testing.assert_array_equal(found.removed, truth.removed)
    narrow, divided = whole.nearest(some, 4, 5), parts.nearest(some, 4, 5)
    np.testing.assert_array_equal(narrow.keys, divided.keys)
    np.testing.assert_array_equal(narrow.removed, divided.removed)
    batches = [whole.nearest(some.take(rows), 4, 5).keys for rows in np.array_split(np.arange(len(some)), 7)]
    np.testing.assert_array_equal(narrow.keys, np.concatenate(batches))
    by_scores = brute_force.exact_search(some, 4, blocks, compare=comparing(prepare(GPU)))
    np.testing.assert_array_equal(by_scores.keys, truth.keys)
    np.testing.assert_array_equal(by_scores.removed, truth.removed)
    on_cpu = Scan(lists, blocks, [Span(0, ROWS, "cpu")]).nearest(some.take(np.arange(100)), 4, 5)
    assert (on_cpu.keys == narrow.keys[:100]).all(axis=1).mean() > 0.97, "lists that are as near may be others"


@pytest.mark.parametrize(
    ("rows", "lists", "count", "nprobe"), [(60_000, 4096, 3000, 8), (60_000, 3, 5000, 2), (30_000, 128, 700, None)]
)
def test_the_kernel_finds_the_best_scores_that_torch_finds(
    queries: Queries, rows: int, lists: int, count: int, nprobe: int | None
) -> None:
    """Short lists, long lists that several programs share, and all lists as one."""
    name = prepare(GPU)
    rng = np.random.default_rng(1)
    blocks = blocks_of(queries.vectors[:rows], queries.documents[:rows], 8192)
    part = gpu_part.load(rng.integers(0, lists, rows).astype(np.int32), np.arange(rows), lists, blocks, name)
    operand = query_operand(on(name, queries.vectors[:count]))
    probes = None if nprobe is None else torch.rand(count, lists, device=name).topk(nprobe, dim=1).indices
    layout = gpu_best.Layout.of(part, probes, count)
    ours = gpu_best.Best.of(part, operand, layout).table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_best, "_has_triton", lambda: False)
        theirs = gpu_best.Best.of(part, operand, layout).table
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert float((ours - theirs).nan_to_num(0).abs().max()) < ROUNDING
