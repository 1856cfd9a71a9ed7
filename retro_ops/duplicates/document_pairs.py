"""Which documents repeat others: candidates from bands of their signatures, clusters of similar ones, who stays.

A document is a number: its place among all of them, shard by shard. A pair of two, the lower one first, is packed into
64 bits, so that pairs sort and are made unique quickly.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retro_ops.duplicates.minhash import PERMUTATIONS

Pairs = NDArray[np.uint64]
"""Ascending, each once: lower number << 32 | higher number."""

MOST_DOCUMENTS = 2**32

LEAST_RECALL = 0.95
"""Share of the pairs just at the threshold that are to become candidates."""

ALL_PAIRS = 16
"""Documents with one key that are all compared with each other; of more, each with the first and the one before it."""

HALF = np.uint64(32)
LOWER = np.uint64(2**32 - 1)


def rows_per_band(threshold: float) -> int:
    """Numbers of a signature that two documents must share, at the same place, to be compared: as many as still bring
    LEAST_RECALL of the pairs at ``threshold``, since more means fewer to compare."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= LEAST_RECALL:
            return rows
    return 1


def band_keys(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One key a document from some numbers of its signature, ``[numbers, documents]``; equal numbers, equal keys."""
    keys = np.zeros(rows.shape[1], np.uint64)
    for row in rows:  # The finaliser of MurmurHash3, once for each number.
        keys = (keys ^ row) * np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(33)
    return keys


def groups(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``documents`` (ascending) that share their key, group after group, and where each group begins; those that share
    it with nobody are left out."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.bool_)
    alone = first & np.concatenate((first[1:], [True])) if len(first) else first
    return documents[order[~alone]], np.flatnonzero(first[~alone])


def star(members: NDArray[np.int64], starts: NDArray[np.int64]) -> Pairs:
    """Pairs of the first of each group with each other of it."""
    leaders = np.repeat(members[starts], np.diff(np.append(starts, len(members))))
    return pack(leaders, members)


def candidates(members: NDArray[np.int64], starts: NDArray[np.int64]) -> Pairs:
    """Pairs within the groups: all of small ones; of others the first with each, and neighbours."""
    sizes = np.diff(np.append(starts, len(members)))
    place = np.arange(len(members)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    found = [star(members, starts)]
    for back in range(1, ALL_PAIRS):
        near = np.flatnonzero((place >= back) & ((size <= ALL_PAIRS) | (back == 1)))
        found.append(pack(members[near - back], members[near]))
    return joined(found)


def pack(a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    different = a != b
    low, high = np.minimum(a, b)[different].astype(np.uint64), np.maximum(a, b)[different].astype(np.uint64)
    return np.unique(low << HALF | high)


def unpack(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (pairs >> HALF).astype(np.int64), (pairs & LOWER).astype(np.int64)


def joined(parts: list[Pairs]) -> Pairs:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def clusters(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents (ascending) that hang together by ``pairs``, and the number of the cluster of each."""
    low, high = unpack(pairs)
    documents, places = np.unique(np.concatenate((low, high)), return_inverse=True)
    a, b = places[: len(low)], places[len(low) :]
    graph = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(len(documents), len(documents)))
    return documents, connected_components(graph, directed=False)[1].astype(np.int64)


def forest(pairs: Pairs) -> Pairs:
    """As few pairs as hold the same clusters together: the first document of each with each other."""
    documents, of = clusters(pairs)
    order = np.argsort(of, kind="stable")
    return star(documents[order], np.flatnonzero(np.diff(of[order], prepend=-1)))


def who_stays(documents: NDArray[np.int64], clusters: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """The document of its cluster that stays, for each of ``documents``: that of the lowest ``rank``, and of these the
    first."""
    order = np.lexsort((documents, rank, clusters))
    first = order[np.flatnonzero(np.diff(clusters[order], prepend=-1))]
    stays = np.empty(len(first), np.int64)
    stays[clusters[first]] = documents[first]
    return stays[clusters]
