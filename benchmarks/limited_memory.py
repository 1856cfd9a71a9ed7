"""Retrieval on one GPU that holds all vectors, and on the same GPU with little free memory.

Vectors are clustered, drawn on the GPU and written to files; lists are those of a few iterations of k-means, since
only their number and sizes matter for speed. Another tensor takes the memory that the search must do without. Both
searches must find the same. With ``--profile`` the kernels of one search are listed by time.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.compute.fp16_scores import on, prepare, query_operand
from retro_ops.index import kmeans
from retro_ops.index.faiss_index import Lists
from retro_ops.plan.grid import vector_bytes
from retro_ops.plan.specs import IndexShard
from retro_ops.search import chunk_reader, gpu_part, gpu_search
from retro_ops.search.hits import Found, QueryRows
from retro_ops.search.queries import StoredRows, query_shard

DIMENSION, CLUSTERS, BLOCK, CHUNKS_OF_A_DOCUMENT, K = 384, 200_000, 2**19, 10, 4
SHARD_ROWS = 2**22
TRAINING_VECTORS_PER_LIST = 32
GIB = 2**30


def write_shards(folder: Path, count: int, device: str) -> list[IndexShard]:
    draw = torch.Generator(device).manual_seed(0)
    centres = torch.randn(CLUSTERS, DIMENSION, device=device, generator=draw)
    shards = []
    for number, first in enumerate(range(0, count, SHARD_ROWS)):
        rows = min(SHARD_ROWS, count - first)
        out = open_memmap(folder / f"{number}.embeddings.npy", "w+", np.float16, (rows, DIMENSION))
        for start in range(0, rows, BLOCK):
            some = min(BLOCK, rows - start)
            drawn = centres[torch.randint(CLUSTERS, (some,), device=device, generator=draw)]
            drawn += torch.randn(drawn.shape, device=device, generator=draw)
            out[start : start + some] = torch.nn.functional.normalize(drawn).half().cpu().numpy()
        np.save(folder / f"{number}.chunk2seq.npy", (np.arange(rows) // CHUNKS_OF_A_DOCUMENT).astype(np.int32))
        names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
        shards.append(IndexShard(*(str(folder / f"{number}.{name}.npy") for name in names)))
    return shards


def made_lists(chunks: chunk_reader.IndexedChunks, lists: int, iterations: int, device: str) -> Lists:
    first = on(device, chunks.embeddings[0].rows(0, min(len(chunks.embeddings[0]), lists * TRAINING_VECTORS_PER_LIST)))
    centroids = kmeans.kmeans(first[None], lists, iterations, seed=0)
    of = [
        kmeans.nearest(query_operand(on(device, block.vectors))[None], centroids)[0].int().cpu()
        for block in chunks.blocks(None)
    ]
    return Lists(centroids[0].cpu().numpy(), torch.cat(of).numpy(), np.arange(chunks.total), None)


class Occupied:
    """All memory of the GPU but ``free`` bytes is taken; None: none is taken."""

    def __init__(self, free: float | None, device: str) -> None:
        self.bytes = 0
        if device != "cpu":
            torch.cuda.empty_cache()
            self.bytes = int(torch.cuda.mem_get_info()[0] - free) if free else 0
            torch.cuda.reset_peak_memory_stats()
        self._taken: Any = torch.empty(self.bytes, dtype=torch.uint8, device=device)

    def __enter__(self) -> "Occupied":
        return self

    def __exit__(self, *_: Any) -> None:
        self._taken = None
        torch.cuda.empty_cache()


def scan_of(
    chunks: chunk_reader.IndexedChunks, lists: Lists, devices: list[str], shared: bool = False
) -> tuple[gpu_search.Scan, int]:
    """The scan, and into how many parts the vectors are divided: with ``shared`` over the devices."""
    slots = gpu_part.count_slots(lists.of, len(lists.centroids)) * vector_bytes(DIMENSION)
    capacity = slots // 2 if devices == ["cpu"] else min(map(gpu_search.capacity, devices))
    spans = gpu_search.spans(lists, DIMENSION, devices, min(capacity, slots - 1) if shared else capacity)
    return gpu_search.Scan(lists, chunks.blocks, spans), len({(span.first, span.end) for span in spans})


def searched(
    chunks: chunk_reader.IndexedChunks,
    lists: Lists,
    queries: QueryRows,
    nprobe: int,
    free: float | None,
    devices: list[str],
    shared: bool = False,
) -> Found:
    operations = 2.0 * DIMENSION * len(queries) * (nprobe * chunks.total / len(lists.centroids) + len(lists.centroids))
    with Occupied(free, devices[0]) as occupied:
        start = time.monotonic()
        scan, parts = scan_of(chunks, lists, devices, shared)
        loaded = time.monotonic()
        found = scan.nearest(queries, K, nprobe)
        end = time.monotonic()
        peak = (torch.cuda.max_memory_allocated() - occupied.bytes) / GIB
        del scan
    memory = f"{free / GIB:.0f} GiB free" if free else "all on each GPU" if parts == 1 else "shares"
    print(
        f"{len(lists.centroids):>8,}{nprobe:>8}{len(devices):>6}  {memory:17}{parts:>6}"
        f"{loaded - start:>9.1f}{end - loaded:>9.1f}"
        f"{len(queries) / (end - loaded):>12,.0f}{len(queries) / (end - start):>12,.0f}"
        f"{operations / (end - loaded) / 1e12:>9.0f}{peak:>9.1f}",
        flush=True,
    )
    return found


def profiled(search: Any) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        start = time.monotonic()
        search()
        torch.cuda.synchronize()
        seconds = time.monotonic() - start
    rows = sorted(((of.self_device_time_total, of.count, of.key) for of in profile.key_averages()), reverse=True)
    print(f"{seconds:.2f} s, of which kernels {sum(row[0] for row in rows) / 1e6:.2f} s")
    for microseconds, count, name in rows[:6]:
        print(f"  {microseconds / 1e3:>9.1f} ms {count:>7} x {name[:110]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=33_500_000)
    parser.add_argument("--queries", type=int, default=2_000_000)
    parser.add_argument("--lists", type=int, nargs="+", default=[131_072, 4096])
    parser.add_argument("--nprobe", type=int, nargs="+", default=[32, 8], help="for each of the numbers of lists")
    parser.add_argument("--free", type=float, nargs="+", default=[8], help="GiB of the GPU that are left")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs of a further search; 1: no further search")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--device", default="cuda:0", help="cpu: to see that it runs; then nothing is limited")
    parser.add_argument("--profile", action="store_true")
    of = parser.parse_args()
    of.folder.mkdir(parents=True, exist_ok=True)
    prepare(Device("cuda" if of.device != "cpu" else "cpu", "benchmark"))
    print(machine.describe())
    start = time.monotonic()
    chunks = chunk_reader.IndexedChunks(write_shards(of.folder, of.count, of.device))
    print(f"{chunks.total:,} vectors written in {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    rows = sum(len(block.vectors) for block in chunks.blocks(None))
    print(f"{rows:,} vectors read in {time.monotonic() - start:.1f} s", flush=True)
    queries = StoredRows([query_shard(chunks, 0, with_tokens=False)], range(min(of.queries, SHARD_ROWS, of.count)))
    for lists, nprobe in zip(of.lists, of.nprobe, strict=True):
        start = time.monotonic()
        made = made_lists(chunks, lists, of.iterations, of.device)
        sizes: NDArray[np.int64] = np.bincount(made.of, minlength=lists)
        print(
            f"{lists:,} lists in {time.monotonic() - start:.0f} s, the largest of {sizes.max():,}, "
            f"{(sizes == 0).sum():,} empty"
        )
        print(
            "   lists  nprobe  GPUs  memory           parts   load s search s   queries/s  with load  TFLOP/s peak GiB",
            flush=True,
        )
        few = queries.select(np.arange(min(2**18, len(queries))))
        scan, _ = scan_of(chunks, made, [of.device])
        scan.nearest(few, K, nprobe)  # Compiles the kernels.
        if of.profile:
            profiled(partial(scan.nearest, few, K, nprobe))
        del scan
        whole = searched(chunks, made, queries, nprobe, None, [of.device])
        others = [partial(searched, free=free * GIB, devices=[of.device]) for free in of.free]
        if of.gpus > 1:
            devices = [f"cuda:{number}" for number in range(of.gpus)]
            others += [partial(searched, free=None, devices=devices, shared=shared) for shared in (False, True)]
        for search in others:
            found = search(chunks, made, queries, nprobe)
            assert np.array_equal(found.keys, whole.keys)
            assert np.array_equal(found.removed, whole.removed)


if __name__ == "__main__":
    main()
