"""Brute force: the nearest chunks of other documents, each chunk compared with each query."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retro_ops.search.exact import (
    KEEP_ALL,
    NOTHING,
    Compare,
    Keys,
    VectorOperand,
    near_pairs,
    on_host,
    pack,
    query_operand,
    smallest,
    squared_distances,
    unpack,
)
from retro_ops.search.hits import (
    NONE_REMOVED,
    Block,
    Blocks,
    Found,
    HitFilter,
    Queries,
    Removed,
    joined,
    nearest_passing,
)

QUERIES_PER_STEP = 512
"""Queries of an exact search at a time: with a block of 16,384, distances and keys take some 200 MB."""

FIRST_CHUNKS = 512
"""Chunks at a time in the first block of an exact search."""


def exact_search(
    queries: Queries,
    k: int,
    blocks: Blocks,
    hit_filter: HitFilter | None = None,
    known: Keys | None = None,
    compare: Compare = on_host,
) -> Found:
    """The ``k`` nearest chunks of all blocks that are of other documents and pass the filter; see ``exact_hits``."""
    best, removed = exact_hits(queries, k, blocks, hit_filter, known, compare)
    return Found(best, removed.counts(len(best)))


def exact_hits(
    queries: Queries,
    k: int,
    blocks: Blocks,
    hit_filter: HitFilter | None = None,
    known: Keys | None = None,
    compare: Compare = on_host,
) -> tuple[Keys, Removed]:
    """The neighbours of each query, keys ``[m, k]``, and all nearer hits, which do not count. Reads each block once.

    1. A block is compared with all queries, QUERIES_PER_STEP of them at a time. The first block comes in small pieces,
       because until a row has ``k`` neighbours, every chunk is one.
    2. The limit of a row is the distance of its last neighbour so far. Once all rows of a step have a limit, single
       precision scores find the pairs within it, and only these few are computed exactly (``near_pairs``).
    3. Pairs of one document are set aside; the others pass the filters.
    4. The ``k`` smallest keys of the old and the new neighbours stay.
    5. Removed hits are kept as long as they are nearer than the last neighbour.

    ``known`` uint64 ``[m, k]``: neighbours among chunks that are in none of the blocks. ``compare``: computes the
    scores.
    """
    best = np.full((len(queries), k), NOTHING) if known is None else known.copy()
    steps = [slice(start, start + QUERIES_PER_STEP) for start in range(0, len(queries), QUERIES_PER_STEP)]
    operands = [query_operand(queries.vectors[step]) for step in steps]
    removed = [NONE_REMOVED for _ in steps]
    for block in _small_at_first(blocks(None)):
        vectors = compare(block.vectors)
        for number, step in enumerate(steps):
            part, nearest = queries.take(step), best[step]
            rows, columns, distances = _pairs_within(part, operands[number], block, vectors, unpack(nearest)[1][:, -1])
            hits = pack(distances, block.first + columns, KEEP_ALL)
            same = part.documents[rows] == block.documents[columns]
            same_document = Removed.of_same_document(rows[same], hits[same])
            new, filtered = nearest_passing(part, _by_row(rows[~same], hits[~same], len(part)), k, hit_filter)
            best[step] = smallest(np.concatenate((nearest, new), axis=1), k)
            removed[number] = joined([removed[number], same_document, filtered]).nearer_than(best[step])
    shifted = [
        Removed(step.start + of_step.rows, of_step.keys, of_step.reasons)
        for step, of_step in zip(steps, removed, strict=True)
    ]
    return best, joined([NONE_REMOVED, *shifted])


def _pairs_within(
    queries: Queries, operand: NDArray[np.float32], block: Block, vectors: VectorOperand, limits: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows (ascending), columns and exact distances of all pairs of a query and a chunk of ``block`` within ``limits``.

    ``limits`` float32 ``[m]``: infinite for a row that is not full yet. ``operand``, ``vectors``: of the scores.
    """
    if not np.isinf(limits).any():
        return near_pairs(operand, block.vectors, vectors, limits)
    distances = squared_distances(queries.vectors, block.vectors)
    rows, columns = np.nonzero(distances <= limits[:, None])
    return rows, columns, distances[rows, columns]


def _small_at_first(blocks: Iterator[Block]) -> Iterator[Block]:
    """``blocks``, the first one cut into pieces of FIRST_CHUNKS."""
    for number, block in enumerate(blocks):
        size = FIRST_CHUNKS if number == 0 else max(1, len(block.vectors))
        for start in range(0, len(block.vectors), size):
            piece = slice(start, start + size)
            yield Block(block.first + start, block.vectors[piece], block.documents[piece])


def _by_row(rows: NDArray[np.int64], hits: Keys, count: int) -> Keys:
    """``hits`` ``[n]`` of ascending ``rows`` ``[n]`` as an array of ``count`` rows, padded with NOTHING."""
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    keys = np.full((count, int(places.max(initial=-1)) + 1), NOTHING)
    keys[rows, places] = hits
    return keys
