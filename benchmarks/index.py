"""Training and filling an index: this package, faiss (faiss-gpu if installed) and the limit of the hardware.

Uses the vectors in a folder of vectors.py, or draws vectors if it does not exist. Quality of both trainings: squared
error of the codes as a share of the squared length, and recall@10 of the filled index against exact search, with a
fixed number of probed lists.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import machine
import numpy as np
import torch
import vectors as made
from numpy.typing import NDArray

from retro_ops.compute.device import Device, choose
from retro_ops.compute.fp16_scores import prepare
from retro_ops.index import faiss_index, filling, index_types, kmeans
from retro_ops.index.training import train
from retro_ops.stages.build_faiss_index import BLOCK_ROWS

Vectors = NDArray[np.float16]


def sample(vectors: Vectors, count: int, seed: int) -> Vectors:
    rows = np.random.default_rng(seed).choice(len(vectors), min(count, len(vectors)), replace=False)
    return vectors[np.sort(rows)]


def row(name: str, seconds: float, count: int, more: str = "") -> None:
    print(f"{name:52}{seconds:>9.2f} s{count / seconds:>14,.0f}/s  {more}", flush=True)


def train_ours(index: Any, vectors: Vectors, where: Device) -> None:
    train(index, vectors, 0, "", where)


def train_faiss(index: Any, vectors: NDArray[np.float32], gpu: bool) -> None:
    """Train as faiss users do: GPU clustering if there is a GPU, no polysemous codes (like this package)."""
    inner = faiss_index.inner_index(index)
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False
    on_gpu = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inner.d)) if gpu else None
    if on_gpu:
        inner.clustering_index = on_gpu
    index.train(vectors)
    inner.clustering_index = None


def blocks(vectors: Vectors) -> list[Vectors]:
    return [vectors[start : start + BLOCK_ROWS] for start in range(0, len(vectors), BLOCK_ROWS)]


def quality(index: Any, vectors: Vectors, queries: Vectors, truth: NDArray[np.int64], nprobe: int) -> str:
    inner = faiss_index.inner_index(index)
    inner.nprobe = nprobe
    error = faiss_index.quantisation_error(index, queries)
    found = index.search(queries.astype(np.float32), 10)[1].tolist()
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.tolist(), strict=True)])
    return f"error {error:.5f}, recall@10 {recall:.4f} at nprobe {nprobe}"


def exact(vectors: Vectors, queries: Vectors, device: str) -> NDArray[np.int64]:
    """The ten nearest vectors, by float32 products."""
    asked = torch.from_numpy(queries).to(device).float()
    best, ids = torch.full((len(queries), 10), torch.inf, device=device), torch.zeros((len(queries), 10), device=device)
    for start in range(0, len(vectors), 65_536):
        block = torch.from_numpy(vectors[start : start + 65_536].copy()).to(device).float()
        distances = block.square().sum(dim=1) - 2 * asked @ block.T
        both = torch.cat((best, distances), dim=1).topk(10, largest=False)
        rows = torch.arange(start, start + len(block), device=device).expand(len(queries), -1)
        numbers = torch.cat((ids, rows), dim=1)
        best, ids = both.values, numbers.gather(1, both.indices)
    return np.asarray(ids.long().cpu().numpy())


def clock(work: Callable[[], Any]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def stage_seconds(folder: Path, trained: Any, device: str) -> tuple[float, float]:
    """Total and filling seconds of `build-faiss-index` in a process of its own, from its report."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        faiss.write_index(trained, f"{scratch}/trained.index")
        subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "retro_ops.cli",
                    "build-faiss-index",
                    "--spec",
                    str(folder / "index.spec.json"),
                ),
                *("--trained-index", f"{scratch}/trained.index", "--output-index", f"{scratch}/filled.index"),
                *("--device", device),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        report = json.loads(Path(scratch, "filled.report.json").read_text())
        return float(report["seconds"]), float(report["details"]["fill_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200_000, help="vectors to draw if the folder has none")
    parser.add_argument("--index-type", default="IVF1024,PQ32")
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument(
        "--faiss-train", action=argparse.BooleanOptionalAction, default=True, help="also train with faiss"
    )
    parser.add_argument("--faiss-fill", type=int, default=100_000, help="vectors that plain faiss adds")
    parser.add_argument("--check", type=int, default=100_000, help="vectors in the search that measures recall")
    parser.add_argument("--nprobe", type=int, default=16)
    parser.add_argument("--device", default="auto")
    of = parser.parse_args()
    if not (of.folder / "embeddings.npy").exists():
        made.write(of.folder, *made.drawn(of.count))
    everything: Vectors = np.load(of.folder / "embeddings.npy", mmap_mode="r")
    where = choose(of.device, "torch")
    device, limits = prepare(where), machine.measure(where.chosen)
    faiss_gpu = hasattr(faiss, "StandardGpuResources") and where.chosen == "cuda"
    training, queries = sample(everything, of.train, 1), sample(everything, 2000, 2)
    dimension = everything.shape[1]
    print(machine.describe())
    print(f"measured limits: {limits.operations / 1e12:,.1f} TFLOP/s, {limits.bytes / 1e9:,.0f} GB/s copied")
    print(f"{len(everything):,} vectors, {of.index_type}, trained on {len(training):,}")
    ours, theirs = (index_types.make_index(of.index_type, dimension) for _ in range(2))
    lists = faiss_index.list_count(ours)
    if where.chosen == "cuda":
        points = torch.from_numpy(training).to(device)[None]
        kmeans.kmeans(points[:, : 2 * lists], lists, 1, 0)  # Warm-up: loads the libraries.
        seconds = machine.timed(lambda: kmeans.kmeans(points, lists, 10, 0), device)
        row("train, ours: k-means of the lists", seconds, len(training))
        operations = 2.0 * len(training) * lists * dimension * 10
        print("  ", limits.line(operations, len(training) * dimension * 2 * 2 * 10, seconds))
    row("train, ours", clock(lambda: train_ours(ours, training, where)), len(training))
    if of.faiss_train:
        name = f"train, faiss{'-gpu' if faiss_gpu else ''}"
        row(name, clock(lambda: train_faiss(theirs, training.astype(np.float32), faiss_gpu)), len(training))
    else:
        theirs = faiss.clone_index(ours)
    if where.chosen == "cuda":
        fill_from_device(ours, everything, device, limits, lists)
        whole_s, fill_s = stage_seconds(of.folder, ours, "cuda")
        row("fill, ours: from files, within the stage", fill_s, len(everything))
        row("fill, ours: the stage, start to saved index", whole_s, len(everything))
    part = np.array(everything[: of.faiss_fill])
    # Alternating, so that other load affects both.
    taken = {"ours": 0.0, "plain faiss": 0.0}
    plain, filled = faiss.clone_index(theirs), faiss.clone_index(theirs)
    for block in blocks(part):
        taken["ours"] += clock(lambda b=block: filling.fill(filled, [b], lambda _: None, Device("cpu", "")))
        taken["plain faiss"] += clock(lambda b=block: plain.add(b.astype(np.float32)))
    for name, seconds in taken.items():
        row(f"fill on the CPU, {name}", seconds, len(part))
    if faiss_gpu:
        on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.clone_index(theirs))
        seconds = sum(clock(lambda b=block: on_gpu.add(b.astype(np.float32))) for block in blocks(part))
        row("fill, faiss-gpu", seconds, len(part))
    part = np.array(everything[: of.check])
    truth = exact(part, queries, device)
    for name, index in (("ours", ours), ("faiss", theirs))[: 2 if of.faiss_train else 1]:
        index.reset()
        filling.fill(index, blocks(part), lambda _: None, where)
        print(f"{name + ' training':20}{quality(index, part, queries, truth, of.nprobe)}", flush=True)


def fill_from_device(index: Any, vectors: Vectors, device: str, limits: machine.Limits, lists: int) -> None:
    """Compute lists and codes of vectors on the device, without copying them back."""
    inner, coder = faiss_index.inner_index(index), filling.coder(index, device)
    kept = torch.from_numpy(np.array(vectors[: 2**21])).to(device)
    seconds = machine.timed(lambda: [coder.encode(block) for block in kept.split(BLOCK_ROWS)], device, repeat=3)
    row("fill, ours: from device memory", seconds, len(kept))
    dimension = vectors.shape[1]
    operations = 2.0 * len(kept) * (lists + 256) * dimension
    print("  ", limits.line(operations, len(kept) * (dimension * 2 + inner.code_size + 8), seconds))


if __name__ == "__main__":
    main()
