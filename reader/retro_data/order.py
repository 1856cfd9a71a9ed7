"""The order of windows in an epoch: from (seed, epoch) alone, and how ranks and workers divide it."""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retro_data.arrays import Ids

ROUNDS = 6
"""Of a Feistel network; four already pass for random, the others cost little."""


def shuffled(positions: Ids, count: int, seed: int, epoch: int) -> Ids:
    """What stands at ``positions`` of a random order of ``range(count)``, which follows from (seed, epoch).

    A Feistel network (Luby and Rackoff, 1988) permutes the numbers of the next even number of bits; a result of
    ``count`` or more is permuted again until it is smaller (cycle walking). So the order needs no memory, and each
    process computes only what it reads.
    """
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8").astype(np.uint64)
    out = positions.astype(np.uint64)
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = _permuted(out[walking], keys, np.uint64(half), mask)
        walking = walking[out[walking] >= count]
    return out.astype(np.int64)


def _permuted(
    numbers: NDArray[np.uint64], keys: NDArray[np.uint64], half: np.uint64, mask: np.uint64
) -> NDArray[np.uint64]:
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def steps(
    count: int, batch_size: int, rank: int, ranks: int, start: int = 0, *, drop_last: bool = False
) -> Iterator[tuple[Ids, int]]:
    """(positions of the batch of ``rank``, position after the step) for each step of an epoch from ``start`` on.

    A step takes the next ``batch_size * ranks`` positions; each rank has a part of them. So after any step the
    positions before its end are exactly those that were trained on, on any number of ranks. The last step has fewer,
    in parts as equal as possible (a part may be empty), unless ``drop_last``.
    """
    together = batch_size * ranks
    for first in range(start, count, together):
        end = min(first + together, count)
        if end - first < together and drop_last:
            return
        bounds = first + -((first - end) * np.arange(ranks + 1) // ranks)  # Rounded up: the first ranks have more.
        yield np.arange(bounds[rank], bounds[rank + 1], dtype=np.int64), end
