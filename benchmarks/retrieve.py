"""Retrieval: this package, the original, plain faiss (also with re-scoring, and on the GPU with faiss-gpu), exact
search and the limit of the hardware.

Uses the vectors in a folder of vectors.py, or draws vectors if it does not exist. Neighbours are from other
documents. Recall@4 is measured against exact search over all vectors on a sample; nprobe and candidates are tuned on
another sample, as in `tune-search`.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import machine
import numpy as np
import vectors as made
from numpy.typing import NDArray

from retro_ops.compute.device import Device, choose
from retro_ops.compute.fp16_scores import prepare
from retro_ops.index import faiss_index, filling, index_types, training
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.specs import IndexShard
from retro_ops.search import chunk_reader, exact, hits, open_index, reranking, seed_profile, tuning
from retro_ops.search.queries import query_shard, sample
from retro_ops.stages.build_faiss_index import BLOCK_ROWS

K = 4
CELLS = 2**24
MARGIN = 60

Ids = NDArray[np.int64]


def recall(found: Ids, truth: Ids) -> float:
    hits = (found[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
    return float(hits.sum() / max(1, (truth >= 0).sum()))


Find = Callable[[hits.Queries], Ids]

TURNS = 4


class Table:
    def __init__(self, check: hits.Queries, truth: Ids) -> None:
        self._check, self._truth = check, truth
        print(f"{'search':58}{'recall@4':>10}{'full rows':>11}{'queries/s':>12}")

    def row(self, name: str, find: Find, queries: hits.Queries) -> float:
        """Print recall on the sample and rate on ``queries``; return the seconds."""
        return self.by_turns({name: find}, queries, turns=1)[0]

    def by_turns(self, finds: dict[str, Find], queries: hits.Queries, turns: int) -> list[float]:
        """Print rows for several searches that take turns on slices of the queries, so that other load affects all."""
        recalls, seconds = [], [0.0] * len(finds)
        for find in finds.values():
            found = find(self._check)
            recalls.append((recall(found, self._truth), (found >= 0).all(axis=1).mean()))
        for rows in np.array_split(np.arange(len(queries)), turns):
            some = queries.take(rows) if turns > 1 else queries
            for number, find in enumerate(finds.values()):
                start = time.monotonic()
                find(some)
                seconds[number] += time.monotonic() - start
        for name, (share, full), taken in zip(finds, recalls, seconds, strict=True):
            print(f"{name:58}{share:>10.4f}{full:>11.2%}{len(queries) / taken:>12,.0f}", flush=True)
        return seconds


def plain(search_of: Callable[[NDArray[np.float32], int], Ids], owners: Ids, margin: int, queries: hits.Queries) -> Ids:
    """Neighbours in the order of the index, without hits of the same document, cut to K."""
    ids = search_of(queries.vectors.astype(np.float32), K + margin)
    keep = (ids >= 0) & (owners[np.maximum(ids, 0)] != queries.documents.view(np.int64)[:, None])
    return seed_profile.keep_first(ids, np.zeros(ids.shape, np.float32), keep, K).ids


def build(folder: Path, index_type: str, train: int, where: Device) -> Any:
    """The filled index, which is kept in the folder."""
    path = folder / f"{index_type}.index"
    if path.exists():
        return faiss.read_index(str(path))
    vectors = np.load(folder / "embeddings.npy", mmap_mode="r")
    index = index_types.make_index(index_type, vectors.shape[1])
    rows = np.sort(np.random.default_rng(1).choice(len(vectors), min(train, len(vectors)), replace=False))
    training.train(index, vectors[rows], 0, index_type, where)
    blocks = (vectors[start : start + BLOCK_ROWS] for start in range(0, len(vectors), BLOCK_ROWS))
    filling.fill(index, blocks, lambda _: None, where)
    faiss.write_index(index, str(path))
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200_000, help="vectors to draw if the folder has none")
    parser.add_argument("--index-type", default="IVF1024,PQ32")
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--device", default="auto")
    of = parser.parse_args()
    if not (of.folder / "embeddings.npy").exists():
        made.write(of.folder, *made.drawn(of.count))
    where = choose(of.device, "torch")
    prepare(where)
    limits = machine.measure(where.chosen)
    index = build(of.folder, of.index_type, of.train, where)
    shard = IndexShard(*(str(of.folder / f"{name}.npy") for name in made.NAMES))
    chunks = chunk_reader.IndexedChunks([shard])
    of_shard = query_shard(chunks, 0, with_tokens=False)
    print(machine.describe())
    print(f"measured limits: {limits.operations / 1e12:,.1f} TFLOP/s, {limits.bytes / 1e9:,.0f} GB/s copied")
    start = time.monotonic()
    ours = open_index.SearchedIndex("", chunks, where, Parameters(), None, 0).over(index, [0])
    load_s = time.monotonic() - start
    tuning_sample, check = (sample([of_shard], of.sample, seed) for seed in (0, 1))
    queries = sample([of_shard], of.queries, seed=2)
    parameters = Parameters(target_recall=of.target, num_neighbours=K)
    tuned = tuning.tune(tuning_sample, ours, parameters)
    assert tuned.width is not None
    width: reranking.Width = tuned.width
    truth, _ = exact.unpack(ours.exact(check, K).keys)
    print(f"{chunks.total:,} vectors, {of.index_type}, {len(queries):,} queries, k = {K}; loaded in {load_s:.1f} s")
    table = Table(check, truth)
    owners = np.concatenate([block.documents for block in ours.blocks(None)]).view(np.int64)

    def by_ours(some: hits.Queries, width: reranking.Width = width) -> Ids:
        return exact.unpack(reranking.find(some, K, ours, width, CELLS, reranking.Effort()).keys)[0]

    what = f"nprobe {width.nprobe}, " + ("whole vectors" if ours.nearest else f"{width.candidates} candidates")
    name = f"ours, target {of.target} ({what})"
    if where.chosen == "cpu":
        half = reranking.Width(max(1, width.nprobe // 2), width.candidates)
        finds = {name: by_ours, f"ours, half as many lists ({half.nprobe})": partial(by_ours, width=half)}
        seconds = _beside_faiss(table, finds, index, of.folder, owners, width, queries)
    else:
        seconds = table.row(name, by_ours, queries)
    print("  ", limits.line(*_work(len(queries), width, chunks.total, ours.lists, 384, bool(ours.nearest)), seconds))
    some = queries.take(slice(0, 4000 if ours.nearest else 500))
    table.row("exact search, ours", lambda of: exact.unpack(ours.exact(of, K).keys)[0], some)
    if ours.nearest:
        for nprobe in (16, 32, 64, 128):
            _nprobe_row(table, ours, nprobe, queries)
    _plain_rows(table, index, owners, width, queries.take(slice(0, 20_000)))
    if where.chosen == "cuda" and hasattr(faiss, "StandardGpuResources"):
        _gpu_rows(table, index, owners, width, queries)


def _work(queries: int, width: reranking.Width, total: int, lists: int, d: int, whole: bool) -> tuple[float, float]:
    """Operations and least bytes: centroids, and vectors (or codes) of the probed lists once for all queries."""
    scanned = queries * width.nprobe * total / lists
    operations = 2.0 * d * (queries * lists + (scanned if whole else queries * width.candidates))
    return operations, queries * d * 2 + lists * d * 2 + total * d * 2


def _plain_rows(table: Table, index: Any, owners: Ids, width: reranking.Width, queries: hits.Queries) -> None:
    inner = faiss_index.inner_index(index)
    for nprobe, margin in ((1, 4), (width.nprobe, MARGIN)):
        inner.nprobe = nprobe
        name = "the original's way: plain faiss" if margin == 4 else "plain faiss"
        table.row(
            f"{name} on the CPU, nprobe {nprobe}, margin {margin}",
            lambda some, m=margin: plain(lambda q, w: index.search(q, w)[1], owners, m, some),
            queries,
        )


def _beside_faiss(
    table: Table,
    finds: dict[str, Find],
    index: Any,
    folder: Path,
    owners: Ids,
    width: reranking.Width,
    queries: hits.Queries,
) -> float:
    """By turns with plain faiss at as many lists, and with faiss' own re-scoring of as many candidates, which holds all
    vectors as float32 in memory. Seconds of the first."""
    vectors = faiss.IndexFlat(index.d)
    vectors.add(np.load(folder / "embeddings.npy").astype(np.float32))
    refine = faiss.IndexRefine(index, vectors)
    inner = faiss_index.inner_index(index)
    margin = max(4, width.candidates // 2 - K)
    refine.k_factor = width.candidates / (K + margin)

    def by_faiss(of: Any, margin: int, some: hits.Queries) -> Ids:
        inner.nprobe = width.nprobe  # This package leaves it at the value of its last widening.
        return plain(lambda q, w: of.search(q, w)[1], owners, margin, some)

    name = f"faiss with its re-scoring of {width.candidates} candidates, nprobe {width.nprobe}"
    finds[name] = partial(by_faiss, refine, margin)
    finds[f"plain faiss, nprobe {width.nprobe}, margin {MARGIN}"] = partial(by_faiss, index, MARGIN)
    return table.by_turns(finds, queries, TURNS)[0]


def _nprobe_row(table: Table, ours: reranking.Index, nprobe: int, queries: hits.Queries) -> None:
    def find(some: hits.Queries) -> Ids:
        return exact.unpack(reranking.find(some, K, ours, reranking.Width(nprobe, K), CELLS, reranking.Effort()).keys)[
            0
        ]

    table.row(f"ours, nprobe {nprobe}, whole vectors", find, queries)


def _gpu_rows(table: Table, index: Any, owners: Ids, width: reranking.Width, queries: hits.Queries) -> None:
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True
    on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
    for nprobe, margin in ((1, 4), (width.nprobe, MARGIN), (64, MARGIN)):
        faiss.GpuParameterSpace().set_index_parameter(on_gpu, "nprobe", nprobe)
        table.row(
            f"faiss-gpu, nprobe {nprobe}, margin {margin}, no re-scoring",
            lambda some, m=margin: plain(lambda q, w: on_gpu.search(q, w)[1], owners, m, some),
            queries,
        )


if __name__ == "__main__":
    main()
