"""Counts the bytes that retrieval reads where a device holds a tenth of the vectors, beside the model of `plan`.

    python benchmarks/bytes_read.py [--most 400000]

Random vectors in shards on a local disk; the search for GPUs runs on the CPU, since only reads are counted. "grid":
cells of ten parts and four ranges, written and merged. "one task": all queries by one task that holds one part at a
time.
"""

import argparse
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from retro_ops.index.faiss_index import Lists
from retro_ops.plan import grid
from retro_ops.plan.specs import IndexShard
from retro_ops.search import cells
from retro_ops.search.cells import CellFiles, LayerWriter, Shape
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.merged_cells import MergedCells
from retro_ops.search.queries import StoredRows, query_shard
from retro_ops.search.reranking import Effort
from retro_ops.storage import store
from retro_ops.storage.local import LocalStore

SIZES = (10_000, 30_000, 100_000, 400_000)
SHARDS, DIMENSION, K, NPROBE, LIST = 8, 32, 2, 2, 500
PARTS, RANGES = 10, 4
BATCH = 4096
ROW_BYTES = DIMENSION * 2 + 8
KEYS_BYTES = K * 8 + 8
"""Of a row of a cell, without own hits."""


class Counting(LocalStore):
    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        data, size = super().head(uri, length)
        self.bytes[Path(uri).name.split(".")[0]] += len(data)
        return data, size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        self.bytes[Path(uri).name.split(".")[0]] += length
        return super().read_range(uri, start, length)

    def total(self) -> int:
        return sum(self.bytes.values())


class Corpus:
    def __init__(self, folder: Path, count: int) -> None:
        rng, shards = np.random.default_rng(0), []
        for number in range(SHARDS):
            first, end = grid.bounds(count, SHARDS, number)
            place = folder / str(number)
            place.mkdir(parents=True)
            vectors = rng.standard_normal((end - first, DIMENSION)).astype(np.float32)
            np.save(place / "embeddings.npy", (vectors / np.linalg.norm(vectors, axis=1)[:, None]).astype(np.float16))
            np.save(place / "chunk2seq.npy", (np.arange(end - first) // 5).astype(np.int32))
            np.save(place / "chunks.document_ids.npy", (np.arange(first, end) // 5).astype(np.uint64))
            names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
            shards.append(IndexShard(**{name: str(place / f"{name}.npy") for name in names}))
        self.folder, self.count = folder, count
        self.chunks = IndexedChunks(shards)
        self.centroids = rng.standard_normal((max(2, count // LIST), DIMENSION)).astype(np.float32)
        self.of = rng.integers(0, len(self.centroids), count).astype(np.int32)
        positions = range(SHARDS)
        self.queries = StoredRows.of([query_shard(self.chunks, at, with_tokens=False) for at in positions])
        self.blocks = self.chunks.blocks_of(positions)

    def scan(self, cuts: list[tuple[int, int]]) -> Scan:
        first, end = cuts[0][0], cuts[-1][1]
        lists = Lists(self.centroids, self.of[first:end], np.arange(first, end), None)
        return Scan(lists, self.blocks, [Span(start - first, stop - first, "cpu") for start, stop in cuts])

    def by_grid(self) -> np.ndarray:
        shape = Shape((NPROBE,), K, of_any_document=False)
        for part in range(PARTS):
            made = self.scan([grid.bounds(self.count, PARTS, part)])
            for number in range(RANGES):
                rows = self.queries.between(*grid.bounds(self.count, RANGES, number))
                with LayerWriter(self._cell(part, number), 1, K) as writer:
                    for start in range(0, len(rows), BATCH):
                        for level, layer in cells.search(made, rows.between(start, start + BATCH), shape, start):
                            writer.append(level, layer)
                    writer.close()
                if number < RANGES - 1:  # Another task would load it again.
                    made = self.scan([grid.bounds(self.count, PARTS, part)])
        merged = MergedCells(self._open, PARTS, RANGES, 0, self.count, K)
        found = [merged.neighbours(at, min(at + BATCH, self.count), Effort()) for at in range(0, self.count, BATCH)]
        return np.concatenate([of.keys for of in found])

    def by_one_task(self) -> np.ndarray:
        made = self.scan([grid.bounds(self.count, PARTS, part) for part in range(PARTS)])
        return made.nearest(self.queries, K, NPROBE).keys

    def _cell(self, part: int, number: int) -> str:
        return str(self.folder / "cells" / f"{part}-{number}")

    def _open(self, part: int, number: int) -> CellFiles:
        return CellFiles(self._cell(part, number), levels=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[-1])
    counting = Counting()
    store._LOCAL = counting
    model = {
        "grid": lambda n: n * ((RANGES + PARTS) * ROW_BYTES + PARTS * KEYS_BYTES),
        "one task": lambda n: n * (1 + PARTS) * ROW_BYTES,
    }
    print("| vectors | way | MB read | model | difference | exponent |\n|---|---|---|---|---|---|")
    before: dict[str, tuple[int, int]] = {}
    for count in (size for size in SIZES if size <= parser.parse_args().most):
        results = []
        with tempfile.TemporaryDirectory() as folder:
            corpus = Corpus(Path(folder), count)
            for name, search in (("grid", corpus.by_grid), ("one task", corpus.by_one_task)):
                counting.bytes.clear()
                results.append(search())
                read, expected = counting.total(), model[name](count)
                of = before.get(name)
                power = f"{math.log(read / of[1]) / math.log(count / of[0]):.2f}" if of else ""
                before[name] = count, read
                print(
                    f"| {count:,} | {name} | {read / 1e6:,.1f} | {expected / 1e6:,.1f} | {read / expected - 1:+.1%} "
                    f"| {power} |",
                    flush=True,
                )
        assert (results[0] == results[1]).all()


if __name__ == "__main__":
    main()
