"""Pairs and clusters of similar documents: candidates from signature bands, clusters, and the document to keep of each.

A document is its number, counted through all shards. A pair of numbers, the lower one first, is packed into 64 bits, so
that sorting and removing repeated pairs is fast.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retro_ops.duplicates.minhash import PERMUTATIONS

Pairs = NDArray[np.uint64]
"""Ascending and unique: lower number << 32 | higher number."""

MOST_DOCUMENTS = 2**32

LEAST_RECALL = 0.95
"""Least share of the pairs right at the threshold that must become candidates."""

ALL_PAIRS = 16
"""Up to this many documents with the same key are all compared with each other. In larger groups, each document is
compared with the first and the previous one only."""

HALF = np.uint64(32)
LOWER = np.uint64(2**32 - 1)


def rows_per_band(threshold: float) -> int:
    """Rows of a signature in one band; two documents that agree in a whole band are compared.

    The most rows that still find LEAST_RECALL of the pairs at ``threshold``, since more rows mean fewer comparisons.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= LEAST_RECALL:
            return rows
    return 1


def band_keys(rows: Iterable[NDArray[np.uint32]]) -> NDArray[np.uint64]:
    """One key per document from the rows of a band, each ``[documents]``; equal bands give equal keys."""
    keys = np.zeros(1, np.uint64)
    for row in rows:  # The finaliser of MurmurHash3, applied to each row.
        keys = (keys ^ row) * np.uint64(0xFF51AFD7ED558CCD)
        keys ^= keys >> np.uint64(33)
    return keys


def groups(keys: NDArray[np.uint64], documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``documents`` (ascending) grouped by key, and the start of each group. Unique keys are left out."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.bool_)
    alone = first & np.concatenate((first[1:], [True])) if len(first) else first
    return documents[order[~alone]], np.flatnonzero(first[~alone])


def star(members: NDArray[np.int64], starts: NDArray[np.int64]) -> Pairs:
    """Pairs of the first member of each group with every other member."""
    leaders = np.repeat(members[starts], np.diff(np.append(starts, len(members))))
    return pack(leaders, members)


def candidates(members: NDArray[np.int64], starts: NDArray[np.int64]) -> Pairs:
    """Pairs to compare: all pairs of small groups; in larger ones the first member with each, and adjacent members."""
    sizes = np.diff(np.append(starts, len(members)))
    place = np.arange(len(members)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    pairs = [star(members, starts)]
    for back in range(1, ALL_PAIRS):
        near = np.flatnonzero((place >= back) & ((size <= ALL_PAIRS) | (back == 1)))
        pairs.append(pack(members[near - back], members[near]))
    return joined(pairs)


def pack(a: NDArray[np.int64], b: NDArray[np.int64]) -> Pairs:
    """The pairs ``(a[i], b[i])`` without those of a document with itself."""
    different = a != b
    low, high = np.minimum(a, b)[different].astype(np.uint64), np.maximum(a, b)[different].astype(np.uint64)
    return np.unique(low << HALF | high)


def unpack(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lower and the higher number of each pair."""
    return (pairs >> HALF).astype(np.int64), (pairs & LOWER).astype(np.int64)


def joined(parts: list[Pairs]) -> Pairs:
    """The union of ``parts``."""
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def clusters(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents (ascending) in the graph of ``pairs``, and the connected component of each."""
    low, high = unpack(pairs)
    documents, places = np.unique(np.concatenate((low, high)), return_inverse=True)
    a, b = places[: len(low)], places[len(low) :]
    graph = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(len(documents), len(documents)))
    return documents, connected_components(graph, directed=False)[1].astype(np.int64)


def forest(pairs: Pairs) -> Pairs:
    """The fewest pairs with the same clusters: the first document of each cluster with every other."""
    documents, cluster = clusters(pairs)
    order = np.argsort(cluster, kind="stable")
    return star(documents[order], np.flatnonzero(np.diff(cluster[order], prepend=-1)))


def canonical_of(
    documents: NDArray[np.int64], clusters: NDArray[np.int64], rank: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The document that each of ``documents`` is a copy of: the first one with the lowest ``rank`` in its cluster."""
    order = np.lexsort((documents, rank, clusters))
    first = order[np.flatnonzero(np.diff(clusters[order], prepend=-1))]
    canonical = np.empty(len(first), np.int64)
    canonical[clusters[first]] = documents[first]
    return canonical[clusters]
