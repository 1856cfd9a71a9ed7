"""Datasets of random numbers, in folders, in the formats of the original."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 8
"""Tokens of a chunk."""


def synthetic(folder: Path, shards: Sequence[Sequence[int]], k: int = 3, seed: int = 0, queried: int = 99) -> Path:
    """A dataset spec of ``shards``, each given by the number of chunks of its documents. The first ``queried`` of them
    have neighbours; all are in the index."""
    rng = np.random.default_rng(seed)
    total = sum(map(sum, shards))
    index, rows = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for number, documents in enumerate(shards):
        entry = _shard(folder / f"{number:02}", documents, rng)
        neighbours = rng.integers(0, max(total, 1), (sum(documents), k))
        missing = rng.integers(0, k + 1, sum(documents))
        neighbours[np.arange(k) >= k - missing[:, None]] = -1
        np.save(folder / f"{number:02}/neighbours.npy", neighbours)
        distances = np.sort(rng.random(neighbours.shape), axis=1)
        np.save(folder / f"{number:02}/distances.npy", np.where(neighbours < 0, np.inf, distances).astype(np.float32))
        index.append({**entry, "embeddings": f"{number:02}/embeddings.npy"})
        rows.append({**entry, "neighbours": f"{number:02}/neighbours.npy"})
    (folder / "index.spec.json").write_text(json.dumps(index))
    where = {"faiss_index": "none.index", "index_spec": "index.spec.json"}
    spec = folder / "data.spec.json"
    spec.write_text(json.dumps({"shards": rows[:queried], "neighbours": where}))
    return spec


def _shard(folder: Path, documents: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    tokens = rng.integers(1, 1000, (sum(documents), SIZE)).astype(np.uint16)
    ends = np.cumsum(documents, dtype=np.int64)
    for last in ends - 1:
        tokens[last, rng.integers(1, SIZE + 1) :] = 0
    arrays = {
        "chunks": tokens,
        "seq2chunk": ends - np.array(documents, np.int64),
        "chunk2seq": np.repeat(np.arange(len(documents), dtype=np.int32), np.array(documents, np.int64)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "embeddings.npy", rng.random((sum(documents), 4)).astype(np.float16))
    return {name: f"{folder.name}/{name}.npy" for name in arrays}
