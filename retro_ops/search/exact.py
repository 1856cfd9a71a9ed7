"""Exact squared L2 distances between stored float16 embeddings, and the order (distance, id) as one number.

**Exact.** A float16 of absolute value up to 1 is a multiple of 2^-24, so every product of two is a multiple of 2^-48,
and for vectors of length about 1 every partial sum stays far below 2^5: 53 bits hold all of them. So float64
computes ``|q|^2 + |x|^2 - 2 q.x`` without any rounding, for any order of summation, any batch and any BLAS, and
the result is rounded once, to float32. Therefore results do not depend on how the work is divided.

**Keys.** Non-negative float32 numbers sort as their bits do, so ``bits << 32 | id`` sorts by (distance, id) as an
integer, and no two candidates are equal: a plain partition or sort settles ties.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import cores
from retro_ops.compute.fp16_scores import on

Keys = NDArray[np.uint64]

NOTHING = np.uint64(2**64 - 1)
"""No candidate: sorts after all keys."""

PAIRS_PER_STEP = 1024
"""Pairs whose vectors are gathered at a time, few enough to stay in the cache of the processor."""


def squared_distances(queries: NDArray[np.float16], block: NDArray[np.float16]) -> NDArray[np.float32]:
    """Squared distances float32 ``[m, b]`` between all rows of ``queries`` ``[m, d]`` and of ``block`` ``[b, d]``."""
    q, x = queries.astype(np.float64), block.astype(np.float64)
    distances = q @ x.T
    distances *= -2
    distances += np.einsum("md,md->m", q, q)[:, None]
    distances += np.einsum("bd,bd->b", x, x)
    return distances.astype(np.float32)


def query_operand(vectors: NDArray[np.float16]) -> NDArray[np.float32]:
    """Left operand of scores, float32 ``[n, d + 1]``, of ``vectors`` ``[n, d]``: each vector and a 1.

    The right operand is ``[x, -|x|^2 / 2]``, so that ``score = q.x - |x|^2 / 2 = (|q|^2 - |q - x|^2) / 2``.
    """
    return np.concatenate((vectors, np.ones((len(vectors), 1), np.float16)), axis=1, dtype=np.float32)


AtLeast = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.int64]]
"""(left operand ``[m, d + 1]``, least score ``[m]``) -> places (int64) in the flat ``[m, b]`` that reach it."""


@dataclass(frozen=True)
class VectorOperand:
    """Right operand of the scores of ``b`` vectors, on some device. ``longest``: the greatest length of one."""

    longest: float
    at_least: AtLeast


Compare = Callable[[NDArray[np.float16]], VectorOperand]
"""Prepares vectors ``[b, d]`` for float32 scores."""


def on_host(vectors: NDArray[np.float16]) -> VectorOperand:
    """Scores on the CPU; ``comparing`` computes them on a GPU."""
    operand = np.concatenate((vectors, np.empty((len(vectors), 1), np.float16)), axis=1, dtype=np.float32)
    squares = _squares(operand[:, :-1])
    operand[:, -1] = squares / -2
    longest = float(np.sqrt(squares.max(initial=0)))
    return VectorOperand(longest, lambda queries, least: np.flatnonzero(queries @ operand.T >= least[:, None]))


def near_pairs(
    operand: NDArray[np.float32], block: NDArray[np.float16], vectors: VectorOperand, limits: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows (ascending), columns and exact distances of all pairs within the row's limit, ``limits`` float32 ``[m]``.

    1. The limit of a row as a least score: ``distance <= limit`` if and only if ``score >= (|q|^2 - limit) / 2``.
    2. It is lowered by the greatest possible rounding error, so no pair is lost: a float32 sum of n products is wrong
       by no more than about n 2^-24 times the sum of their absolute values, in any order (N. Higham, Accuracy and
       Stability of Numerical Algorithms, section 3.1), and twice that is allowed for.
    3. One single precision matrix product gives the scores, and few pairs reach theirs.
    4. The distances of these pairs are computed exactly, and those within the limit stay.

    ``operand``: left operand ``[m, d + 1]`` of the queries; ``vectors``: right operand of ``block`` ``[b, d]``.
    """
    queries = operand[:, :-1]
    squares = _squares(queries)
    longest = np.sqrt(squares) + vectors.longest
    least = (squares - limits.astype(np.float64)) / 2 - (operand.shape[1] + 15) * 2.0**-23 * longest**2
    near = vectors.at_least(operand, np.nextafter(least.astype(np.float32), np.float32(-np.inf)))
    rows, columns = np.divmod(near, len(block))
    wanted, places = np.unique(columns, return_inverse=True)
    distances = pair_distances(queries, block[wanted].astype(np.float32), rows, places)
    kept = distances <= limits[rows]
    return rows[kept], columns[kept], distances[kept]


def _squares(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared lengths of float16 values ``[n, d]``, exactly: float64 ``[n]``."""
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
    return squares


def pair_distances(
    queries: NDArray[np.float32], block: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Exact squared distances float32 ``[n]`` between ``queries[rows[i]]`` and ``block[columns[i]]``.

    The numbers are those of float16. They come as float32, since widening a vector costs more than its distance, and
    most vectors are needed many times.
    """
    out = np.empty(len(rows), np.float32)
    threads = min(cores(), -(-len(rows) // PAIRS_PER_STEP))

    def every(first: int) -> None:
        for start in range(first * PAIRS_PER_STEP, len(rows), threads * PAIRS_PER_STEP):
            step = slice(start, start + PAIRS_PER_STEP)
            # The difference of two float16 is exact in float32; its square and their sum need float64.
            wide = (queries[rows[step]] - block[columns[step]]).astype(np.float64)
            out[step] = np.einsum("nd,nd->n", wide, wide)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(every, range(threads)))
    return out


KEEP_ALL = np.ones(1, np.bool_)


def pack(distances: NDArray[np.float32], ids: NDArray[np.int64], keep: NDArray[np.bool_]) -> Keys:
    """Keys of the candidates where ``keep`` holds, NOTHING elsewhere. Shapes broadcast."""
    bits = np.maximum(distances, np.float32(0)).view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | ids.astype(np.uint64)
    return np.where(keep, keys, NOTHING)


def unpack(keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids int64 (-1 for none) and distances float32 (infinity for none), in the shape of ``keys``."""
    none = keys == NOTHING
    ids = np.where(none, -1, (keys & np.uint64(0xFFFFFFFF)).astype(np.int64))
    distances = (keys >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return ids, np.where(none, np.float32(np.inf), distances)


def smallest(keys: Keys, count: int) -> Keys:
    """The ``count`` smallest keys of each row, in ascending order, padded with NOTHING."""
    if keys.shape[1] > count:
        keys = np.partition(keys, count - 1, axis=1)[:, :count] if count else keys[:, :0]
    keys = np.sort(keys, axis=1)
    missing = count - keys.shape[1]
    return np.pad(keys, ((0, 0), (0, missing)), constant_values=NOTHING) if missing > 0 else keys


def comparing(device: str) -> Compare:
    """Computes scores on ``device`` (torch's name), in float32 as ``on_host`` does."""
    import torch

    def compare(vectors: NDArray[np.float16]) -> VectorOperand:
        wide = on(device, vectors).float()
        squares = wide.double().square_().sum(dim=1)
        operand = torch.cat((wide, (squares / -2).float()[:, None]), dim=1)
        longest = float(squares.max().sqrt()) if len(vectors) else 0.0

        def at_least(queries: NDArray[np.float32], least: NDArray[np.float32]) -> NDArray[np.int64]:
            near = on(device, queries) @ operand.T >= on(device, least)[:, None]
            return np.asarray(near.flatten().nonzero()[:, 0].cpu().numpy())

        return VectorOperand(longest, at_least)

    return compare
