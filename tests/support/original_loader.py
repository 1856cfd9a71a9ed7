"""How the original's trainer reads a dataset, stated again from docs/formats.md in the plainest way: row by row."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Example(NamedTuple):
    """One document. ``input_ids``: int32 ``[tokens]``; ``neighbour_ids``: int32 ``[chunks, k, tokens]``; ``labels``:
    int64 ``[tokens]``."""

    input_ids: Array
    neighbour_ids: Array
    labels: Array


def examples(spec: Path, k: int | None = None, continuation: int = 1, pad: int = 0, max_len: int | None = None) -> Any:
    """The examples of a dataset spec, one a document, in order."""
    queried = json.loads(spec.read_text())
    index_spec = spec.parent / queried["neighbours"]["index_spec"]
    index = [_arrays(index_spec, entry) for entry in json.loads(index_spec.read_text())]
    for entry in queried["shards"]:
        shard = _arrays(spec, entry)
        for first, end in zip(shard["seq2chunk"], [*shard["seq2chunk"][1:], len(shard["chunks"])], strict=False):
            size = shard["chunks"].shape[1]
            rows = range(first, end)[: None if max_len is None else max_len // size]
            ids = shard["neighbours"]
            neighbours = [[_neighbour(index, n, continuation, pad, size) for n in ids[row][:k]] for row in rows]
            tokens = np.concatenate([shard["chunks"][row] for row in rows]).astype(np.int32)
            following = [int(token) if token != pad else -100 for token in tokens[1:]]
            yield Example(tokens, np.array(neighbours, np.int32), np.array([*following, -100], np.int64))


def _arrays(spec: Path, entry: dict[str, str]) -> dict[str, Array]:
    return {name: np.load(spec.parent / path) for name, path in entry.items() if name != "embeddings"}


def _neighbour(index: list[dict[str, Array]], number: int, continuation: int, pad: int, size: int) -> list[int]:
    tokens: list[int] = []
    if number != -1:
        for shard in index:
            if number < len(shard["chunks"]):
                break
            number -= len(shard["chunks"])
        for row in range(number, min(number + 1 + continuation, len(shard["chunks"]))):
            if shard["chunk2seq"][row] == shard["chunk2seq"][number]:
                tokens += shard["chunks"][row].tolist()
    return tokens + [pad] * ((1 + continuation) * size - len(tokens))
