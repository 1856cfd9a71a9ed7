"""The rules of the file formats. Each function checks one block of rows and returns the broken rules as sentences."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-3
"""Distances of equal vectors that were computed in half precision may be this much below 0."""

NORM_TOLERANCE = 0.01
"""float16 rounds each component by up to 0.05 %."""


def check_seq2chunk(block: NDArray[Any], previous: int, chunks: int) -> list[str]:
    """Check a block of seq2chunk: the first chunk of each document.

    ``previous``: the value before the block (-1 at the start). ``chunks``: number of chunks of the shard.
    """
    values = np.concatenate(([previous], block.astype(np.int64)))
    if (np.diff(values) <= 0).any():
        return ["seq2chunk is not strictly increasing"]
    if previous == -1 and len(block) and block[0] != 0:
        return ["seq2chunk does not start with 0"]
    return ["seq2chunk points past the last chunk"] if len(block) and block[-1] >= chunks else []


def check_chunk2seq(
    block: NDArray[Any], first_row: int, previous: int, starts: NDArray[Any], documents: int
) -> list[str]:
    """Check a block of chunk2seq: the document of each chunk, from row ``first_row`` on.

    ``previous``: the document before the block (-1 at the start). ``starts``: seq2chunk of the documents
    ``previous + 1`` to the last one of the block. ``documents``: number of documents of the shard.
    """
    values = np.concatenate(([previous], block.astype(np.int64)))
    steps = np.diff(values)
    if ((steps != 0) & (steps != 1)).any():
        return ["chunk2seq skips documents or goes back"]
    if len(block) and block[-1] >= documents:
        return ["chunk2seq refers to a document that seq2chunk does not have"]
    if not np.array_equal(np.flatnonzero(steps) + first_row, starts):
        return ["seq2chunk and chunk2seq disagree about where documents start"]
    return []


def check_embeddings(block: NDArray[Any]) -> list[str]:
    """Check that embeddings are finite and normalised."""
    norms = np.linalg.norm(block.astype(np.float32), axis=1)
    if not np.isfinite(norms).all():
        return ["embeddings contain NaN or infinity"]
    return ["embeddings are not normalised"] if (np.abs(norms - 1) > NORM_TOLERANCE).any() else []


def check_neighbours(block: NDArray[Any], total: int, own_first: NDArray[Any], own_end: NDArray[Any]) -> list[str]:
    """Check neighbour ids.

    ``total``: chunks in the index. ``own_first:own_end``: global ids of each row's own document.
    """
    broken = []
    if ((block < -1) | (block >= total)).any():
        broken.append("neighbours refer to chunks that the index does not have")
    missing = block == -1
    if (missing[:, :-1] & ~missing[:, 1:]).any():
        broken.append("a neighbour follows a -1")
    if ((block >= own_first[:, None]) & (block < own_end[:, None])).any():
        broken.append("a chunk has a neighbour from its own document")
    ordered = np.sort(np.where(missing, -1 - np.arange(block.shape[1]), block), axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        broken.append("a row has the same neighbour twice")
    return broken


def check_distances(block: NDArray[Any], neighbours: NDArray[Any]) -> list[str]:
    """Check that distances are not negative, infinite exactly where a neighbour is missing, and ascend along a row."""
    if np.isnan(block).any():
        return ["distances contain NaN"]
    if (block < -ROUNDING).any():
        return ["distances are negative"]
    if not np.array_equal(np.isinf(block), neighbours == -1):
        return ["distances and neighbours disagree about which neighbours exist"]
    finite = np.where(np.isinf(block), np.float32(np.finfo(np.float32).max), block)
    return ["distances decrease along a row"] if (np.diff(finite, axis=1) < 0).any() else []
