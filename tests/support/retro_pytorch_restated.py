"""How lucidrains/RETRO-pytorch reads its memory maps, stated again in the plainest way."""

import json
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sequence(folder: Path, split: str, number: int) -> tuple[Array, Array]:
    """Tokens ``[seq_len + 1]`` of a sequence, and retrieved tokens ``[chunks, k, 2 * chunk_size]``."""
    about = json.loads((folder / "retro.json").read_text())
    size, total, k = about["chunk_size"], about["num_chunks"], about["num_neighbors"]
    chunks = np.memmap(folder / "chunks.dat", np.int32, "r", shape=(total + about["seq_len"] // size, size + 1))
    near = np.memmap(folder / "chunks.knn.dat", np.int32, "r", shape=(len(chunks), k))
    starts = np.memmap(folder / f"{split}.seq.dat", np.int32, "r", shape=(about["num_sequences"][split],))
    rows = range(starts[number], starts[number] + about["seq_len"] // size)
    tokens = np.concatenate([*(chunks[row][:-1] for row in rows), chunks[rows[-1]][-1:]])
    ends = np.flatnonzero(tokens == about["eos_id"])
    if len(ends):
        tokens[ends[0] + 1 :] = 0
    return tokens, np.array([[_neighbour(chunks, int(n), about) for n in near[row]] for row in rows])


def _neighbour(chunks: Array, number: int, about: dict[str, Any]) -> Array:
    if number == -1:
        return np.full(2 * about["chunk_size"], about["pad_id"])
    own, following = chunks[number], chunks[min(number + 1, about["num_chunks"] - 1)][:-1]
    return np.concatenate([own[:-1], following * (about["eos_id"] not in own)])
