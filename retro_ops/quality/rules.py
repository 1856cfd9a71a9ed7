"""The rules of the formats, each over one block of rows. A finding is a sentence that names the rule."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NORM_TOLERANCE = 0.01
"""float16 rounds each component by up to 0.05 %."""


def check_seq2chunk(block: NDArray[Any], previous: int, chunks: int) -> list[str]:
    """First chunks of consecutive documents; ``previous`` is the one before the block (-1 at the start)."""
    values = np.concatenate(([previous], block.astype(np.int64)))
    if (np.diff(values) <= 0).any():
        return ["seq2chunk does not increase strictly"]
    if previous == -1 and len(block) and block[0] != 0:
        return ["seq2chunk does not begin with 0"]
    return ["seq2chunk points behind the last chunk"] if len(block) and block[-1] >= chunks else []


def check_chunk2seq(
    block: NDArray[Any], first_row: int, previous: int, starts: NDArray[Any], documents: int
) -> list[str]:
    """Documents of consecutive chunks from ``first_row`` on. ``previous``: the document before the block
    (-1 at the start). ``starts``: seq2chunk of the documents ``previous + 1`` to the last of the block."""
    values = np.concatenate(([previous], block.astype(np.int64)))
    steps = np.diff(values)
    if ((steps != 0) & (steps != 1)).any():
        return ["chunk2seq skips documents or goes back"]
    if len(block) and block[-1] >= documents:
        return ["chunk2seq names a document that seq2chunk does not have"]
    if not np.array_equal(np.flatnonzero(steps) + first_row, starts):
        return ["seq2chunk and chunk2seq disagree about where documents begin"]
    return []


def check_embeddings(block: NDArray[Any]) -> list[str]:
    norms = np.linalg.norm(block.astype(np.float32), axis=1)
    if not np.isfinite(norms).all():
        return ["embeddings hold NaN or infinity"]
    return ["embeddings are not normalised"] if (np.abs(norms - 1) > NORM_TOLERANCE).any() else []


def check_neighbours(block: NDArray[Any], total: int, own_first: NDArray[Any], own_end: NDArray[Any]) -> list[str]:
    """``total``: chunks in the index; ``own_first:own_end``: global ids of each row's own document."""
    found = []
    if ((block < -1) | (block >= total)).any():
        found.append("neighbours name chunks that the index does not have")
    missing = block == -1
    if (missing[:, :-1] & ~missing[:, 1:]).any():
        found.append("a neighbour stands behind a -1")
    if ((block >= own_first[:, None]) & (block < own_end[:, None])).any():
        found.append("a chunk has a neighbour from its own document")
    ordered = np.sort(np.where(missing, -1 - np.arange(block.shape[1]), block), axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        found.append("a row names a neighbour twice")
    return found


def check_distances(block: NDArray[Any], neighbours: NDArray[Any]) -> list[str]:
    if not np.array_equal(np.isinf(block), neighbours == -1):
        return ["distances and neighbours disagree about which neighbours exist"]
    finite = np.where(np.isinf(block), np.float32(np.finfo(np.float32).max), block)
    return ["distances do not increase along a row"] if (np.diff(finite, axis=1) < 0).any() else []
