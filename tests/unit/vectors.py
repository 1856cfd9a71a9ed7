"""Vectors, blocks and results as the tests of the search make and read them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retro_ops.search import exact, hits
from retro_ops.search.hits import Block


def unit_vectors(rows: int, dimension: int, seed: int, grid: bool = False) -> NDArray[np.float16]:
    """``grid``: few different values, so that many distances are equal."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 2, (rows, dimension)) * 2.0 - 1 if grid else rng.normal(size=(rows, dimension))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float16)


def clustered(rows: int, seed: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 32))
    drawn = centres[rng.integers(0, 40, rows)] + 0.7 * rng.normal(size=(rows, 32))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float16)


def blocks_of(vectors: NDArray[np.float16], documents: NDArray[np.uint64], size: int) -> hits.Blocks:
    def read(wanted: NDArray[np.int64] | None) -> Iterator[Block]:
        for first in range(0, len(vectors), size):
            if wanted is None or np.isin(np.arange(first, first + size), wanted).any():
                yield Block(first, vectors[first : first + size], documents[first : first + size])

    return read


def as_rows(keys: exact.Keys) -> list[list[tuple[float, int]]]:
    ids, distances = exact.unpack(keys)
    return [
        [(float(d), int(i)) for d, i in zip(ds, js, strict=True) if i >= 0]
        for ds, js in zip(distances, ids, strict=True)
    ]


def brute_force(vectors: NDArray[np.float16], documents: NDArray[np.uint64], k: int) -> list[list[tuple[float, int]]]:
    """(distance, id) of the k nearest of other documents, with Python's own integers: no rounding at all."""
    whole = (vectors.astype(np.float64) * 2**24).astype(np.int64).tolist()
    rows = []
    for q, own in zip(whole, documents, strict=True):
        scored = [
            (float(np.float32(sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) / 2**48)), i)
            for i, x in enumerate(whole)
            if documents[i] != own
        ]
        rows.append(sorted(scored)[:k])
    return rows
