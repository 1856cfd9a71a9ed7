"""Reading for training: this package's reader and the original's loader in turns, in one process, on the same files.

python benchmarks/reading.py FOLDER [--original SRC] [--chunks 400000] [--s3]

FOLDER receives a dataset of random tokens with documents of a realistic length, unless it has one. SRC: the folder
`src` of TobiasNorlund/retro; without it, the original's way to read as tests/support restates it. `--s3`: also from an
object store that is started here: cold, that is, the first pass over all windows with an empty cache, and with the
cache.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("reader", "tests/support")]

import original_loader  # noqa: E402
from seaweedfs import seaweedfs  # noqa: E402

from retro_data import Windows, open_dataset, order  # noqa: E402
from retro_ops.storage import checked, store  # noqa: E402

SHARDS, SIZE, NEIGHBOURS, LENGTH, BATCH = 10, 64, 4, 32, 16
SECONDS = 8.0
"""Of each turn."""


def make_dataset(folder: Path, chunks: int) -> Path:
    """Documents of 12 chunks on average, as in books and web pages; a tenth of the neighbours missing."""
    rng = np.random.default_rng(0)
    spec: dict[str, Any] = {"shards": [], "neighbours": {"faiss_index": "none.index", "index_spec": "index.spec.json"}}
    for number in range(SHARDS):
        name = f"{number:02}"
        lengths = rng.geometric(1 / 12, chunks // SHARDS // 12)
        total = int(lengths.sum())
        arrays = {
            "chunks": rng.integers(1, 32_000, (total, SIZE), np.uint16),
            "seq2chunk": np.cumsum(lengths) - lengths,
            "chunk2seq": np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            "neighbours": rng.integers(0, int(chunks * 0.9), (total, NEIGHBOURS)),
        }
        arrays["neighbours"][rng.random(total) < 0.1, -1] = -1
        for kind, array in arrays.items():
            np.save(folder / f"{name}.{kind}.npy", array)
        spec["shards"].append({kind: f"{name}.{kind}.npy" for kind in arrays})
    keys = ("chunks", "seq2chunk", "chunk2seq")
    index = [{**{key: shard[key] for key in keys}, "embeddings": "none.npy"} for shard in spec["shards"]]
    (folder / "index.spec.json").write_text(json.dumps(index))
    (folder / "data.spec.json").write_text(json.dumps(spec))
    return folder / "data.spec.json"


def of_original(source: Path, spec: Path) -> Callable[[int], Any]:
    """Its RetroDataset, as its training script makes it."""
    sys.path.insert(0, str(source))
    import dataset_retro as original

    def sequences(path: Path, entries: list[dict[str, str]]) -> Any:
        kinds = ("chunks", "seq2chunk", "chunk2seq")
        return original.ShardedChunkedSequenceDataset(
            [
                original.ChunkedSequenceDataset(**{kind: path.parent / entry[kind] for kind in kinds})
                for entry in entries
            ]
        )

    shards = json.loads(spec.read_text())["shards"]
    index = sequences(spec, json.loads((spec.parent / "index.spec.json").read_text()))
    near = [original.ChunkNeighbourDataset(spec.parent / shard["neighbours"], index) for shard in shards]
    neighbours = original.ShardedChunkNeighbourDataset(near)
    made = original.RetroDataset(sequences(spec, shards), neighbours, max_len=LENGTH * SIZE)
    return lambda document: made[document]


def restated(spec: Path) -> Iterator[Any]:
    return original_loader.examples(spec, max_len=LENGTH * SIZE)


def rate(read: Callable[[int], int]) -> float:
    """Chunks a second of ``read(step)``, which returns the number of chunks that it read."""
    step = chunks = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < SECONDS:
        chunks += read(step)
        step += 1
    return chunks / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--original", type=Path, help="src folder of TobiasNorlund/retro")
    parser.add_argument("--chunks", type=int, default=400_000)
    parser.add_argument("--s3", action="store_true", help="also from an object store")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    spec = arguments.folder / "data.spec.json"
    if not spec.exists():
        make_dataset(arguments.folder, arguments.chunks)
    train = open_dataset(str(spec)).train
    windows = train.windows(LENGTH)
    print(describe(), f"\n{len(train):,} chunks in {SHARDS} shards, {len(windows):,} windows of up to {LENGTH} chunks")

    def of_reader(step: int, size: int) -> int:
        positions = np.arange(step * size, (step + 1) * size) % len(windows)
        return int(windows.batch(order.shuffled(positions, len(windows), 0, 0))["chunks"].sum())

    first = np.array([0, *np.flatnonzero(np.diff(windows_documents(windows))) + 1])
    if arguments.original:
        example = of_original(arguments.original, spec)
        documents = np.random.default_rng(1).permutation(len(first))
        for document in documents[:200].tolist():
            check(windows, int(first[document]), example(document))

        def of_loader(step: int) -> int:
            return len(example(int(documents[step % len(documents)])).neighbour_ids)
    else:
        source = restated(spec)

        def of_loader(step: int) -> int:
            return len(next(source).neighbour_ids)

    rates: dict[str, list[float]] = {}
    for _ in range(3):
        rates.setdefault("original's loader", []).append(rate(of_loader))
        rates.setdefault("reader, one window at a time", []).append(rate(partial(of_reader, size=1)))
        rates.setdefault(f"reader, batches of {BATCH} windows", []).append(rate(partial(of_reader, size=BATCH)))
    if arguments.s3:
        rates |= from_s3(arguments.folder, len(windows))
    slowest = float(np.median(rates["original's loader"]))
    for name, found in rates.items():
        print(f"{name:36}{np.median(found):12,.0f} chunks/s {np.median(found) / slowest:8.1f} x")


def from_s3(folder: Path, count: int) -> dict[str, list[float]]:
    """Chunks a second from an object store: of a first pass in random order, its copies included, and of a second."""
    with tempfile.TemporaryDirectory() as scratch, seaweedfs(Path(scratch), tls=False) as server:
        os.environ.update(server.environment)
        for path in folder.glob("*.*"):
            checked.copy(str(path), f"{server.bucket}/d/{path.name}", store.sha256(str(path)))
        start = time.perf_counter()
        split = open_dataset(f"{server.bucket}/d/data.spec.json", cache=f"{scratch}/cache").train
        windows = split.windows(LENGTH)
        passes: dict[str, list[float]] = {}
        for name in ("S3, first pass, empty cache", "S3, second pass, cached"):
            chunks = 0
            for first in range(0, count, BATCH):
                positions = np.arange(first, min(first + BATCH, count))
                chunks += int(windows.batch(order.shuffled(positions, count, 0, 0))["chunks"].sum())
            passes[name] = [chunks / (time.perf_counter() - start)]
            start = time.perf_counter()
        return passes


def windows_documents(windows: Windows) -> np.ndarray[Any, Any]:
    """The document (of all shards) of each window."""
    rows, _ = windows.spans(np.arange(len(windows)))
    starts = [shard.seq2chunk.map + first for shard, first in _shards(windows)]
    return np.searchsorted(np.concatenate(starts), rows, side="right") - 1


def _shards(windows: Windows) -> Iterator[tuple[Any, int]]:
    chunks = windows.split.chunks
    return zip(chunks.shards, chunks.offsets.tolist(), strict=False)


def check(windows: Windows, window: int, example: Any) -> None:
    """The tensors are equal."""
    batch = windows.batch([window])
    for name in ("input_ids", "labels", "neighbour_ids"):
        expected = getattr(example, name).numpy()
        np.testing.assert_array_equal(batch[name][0, : len(expected)], expected)
        assert batch[name].dtype == expected.dtype


if __name__ == "__main__":
    main()
