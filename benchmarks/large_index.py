"""An index larger than its memory limit: merged and searched as a whole, and in parts with little memory.

Vectors are synthetic and clustered, since only their number matters for memory. Each stage is a process of its own;
time and peak memory come from its report. The merged files must have the same bytes, and the neighbours must be
equal.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from memory import stage
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

BLOCK = 50_000
CLUSTERS = 2000


def vectors(count: int, centres: NDArray[np.float32], seed: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(seed)
    made = centres[rng.integers(0, len(centres), count)]
    made += rng.standard_normal(made.shape, dtype=np.float32) * 0.5 / np.sqrt(made.shape[1])
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float16)


def write_shards(folder: Path, shards: int, count: int, dimension: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, dimension), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    spec = []
    for number in range(shards):
        out = open_memmap(folder / f"{number}.embeddings.npy", "w+", np.float16, (count, dimension))
        for start in range(0, count, BLOCK):
            out[start : start + BLOCK] = vectors(min(BLOCK, count - start), centres, number * count + start)
        out.flush()
        np.save(folder / f"{number}.chunk2seq.npy", (np.arange(count) // 10).astype(np.int32))
        names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
        spec.append({name: f"{number}.{name}.npy" for name in names})
    (folder / "index.spec.json").write_text(json.dumps(spec))


def merged(folder: Path, shards: int, room: str) -> dict[str, Any]:
    partials = [folder / f"{number}.index" for number in range(shards)]
    files = (
        "--base-index",
        folder / "trained.index",
        "--output-index",
        folder / f"{room}.index",
        "--partials",
        *partials,
    )
    return stage(folder / f"{room}.report.json", "merge-indexes", *files, "--search-memory", room)


def searched(folder: Path, room: str, options: argparse.Namespace) -> dict[str, Any]:
    files = ("--query-embeddings", folder / "0.embeddings.npy", "--query-chunk2seq", folder / "0.chunk2seq.npy")
    index = ("--index", folder / f"{room}.index", "--index-spec", folder / "index.spec.json")
    out = folder / f"{room}.neighbours.npy"
    how = ("--nprobe", options.nprobe, "--retrieval-margin", 60, "--device", "cpu", "--recall-sample", 200)
    memory = ("--search-memory", room, "--memory-budget", options.budget)
    report = folder / f"{room}.neighbours.report.json"
    return stage(report, "retrieve-neighbours", *files, *index, "--neighbours-output", out, *how, *memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument(
        "--vectors", type=int, default=100_000, help="vectors per shard; those of the first shard are the queries"
    )
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--index-type", default="IVF1024,Flat")
    parser.add_argument("--nprobe", type=int, default=8)
    parser.add_argument("--room", default="64MiB", help="memory limit of the index in the run with parts")
    parser.add_argument("--budget", default="256MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder, options.shards, options.vectors, options.dimension)
        spec, trained = folder / "index.spec.json", folder / "trained.index"
        training = ("--index-type", options.index_type, "--max-training-vectors", 50_000)
        stage(folder / "trained.report.json", "train-faiss-index", "--spec", spec, "--output", trained, *training)
        for number in range(options.shards):
            files = ("--spec", spec, "--trained-index", trained, "--output-index", folder / f"{number}.index")
            stage(folder / f"{number}.report.json", "build-faiss-index", *files, "--only-shard", number)
        print(f"{'stage':22}{'memory':>10}{'seconds':>9}{'peak MiB':>10}")
        for room in ("1TiB", options.room):
            for found in (merged(folder, options.shards, room), searched(folder, room, options)):
                peak = found["peak_rss_bytes"] / 2**20
                print(f"{found['stage']:22}{room:>10}{found['seconds']:>9.1f}{peak:>10,.0f}", flush=True)
        whole, parts = folder / "1TiB.index", folder / f"{options.room}.index"
        size = whole.stat().st_size
        print(f"index: {size / 2**20:,.0f} MiB, same bytes: {whole.read_bytes() == parts.read_bytes()}")
        rows = [np.load(folder / f"{room}.neighbours.npy") for room in ("1TiB", options.room)]
        print(f"rows with the same neighbours: {(rows[0] == rows[1]).all(axis=1).mean():.6f} of {len(rows[0]):,}")


if __name__ == "__main__":
    main()
