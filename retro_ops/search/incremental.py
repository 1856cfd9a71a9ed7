"""Neighbours of the base version -> those of the next: old queries ask the new chunks alone.

What a chunk's nearest neighbours were among the chunks that are still there, and how far away, is stored and exact. So
only what came since can change a row, and the k best of both are the k best of all: cost grows with the change, not
with the corpus. A row that named a chunk which went is searched anew, as nobody knows what came after its last one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.index import filling, index_types
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import open_if_larger_than
from retro_ops.memory import MemoryLimit
from retro_ops.plan.paths import distances_uri
from retro_ops.search import reranking
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import Keys, pack, smallest
from retro_ops.search.open_index import comparer, search_in_parts, search_of
from retro_ops.search.queries import QueryShard
from retro_ops.search.renumbering import GONE, renumber
from retro_ops.search.reranking import Found, Index, Queries, Refuse, Width
from retro_ops.storage.npy import open_npy

Seek = Callable[[Queries], Found]
"""Search of the whole index."""


@dataclass(frozen=True)
class Former:
    """Neighbours of a shard in the base version. ``counts``: chunks of each shard of the index spec that they number;
    ``positions``: where each is in the new index spec, None for those that went.

    ``trained``, ``partials``: from what an index of the new shards alone is made; in the order of the new index spec.
    """

    neighbours: str
    counts: tuple[int, ...]
    positions: tuple[int | None, ...]
    trained: str
    partials: tuple[str, ...]


@dataclass
class Done:
    """Rows whose neighbours were merged with new chunks, and rows that were searched anew."""

    merged_rows: int = 0
    searched_rows: int = 0


@dataclass
class Update:
    """Brings rows of ``shard`` up to date; ``news`` is asked by those whose neighbours are all still there."""

    former: Former
    shard: QueryShard
    offsets: NDArray[np.int64]
    news: Callable[[Queries, Keys], Found]
    seek: Seek
    short_rows_count: bool
    done: Done = field(default_factory=Done)

    def __call__(self, start: int, stop: int) -> Found:
        queries = self.shard.rows(start, stop)
        neighbours = open_npy(self.former.neighbours, ndim=2, kind="i")
        if len(neighbours) != len(self.shard):
            raise BadInputError(
                f"{neighbours.uri} has {len(neighbours):,} rows, the shard has {len(self.shard):,}",
                "the base version is damaged: repair it",
            )
        distances = open_npy(distances_uri(neighbours.uri), ndim=2, kind="f").rows(start, stop)
        ids = renumber(neighbours.rows(start, stop), np.array(self.former.counts, np.int64), self.offsets)
        anew = (ids == GONE).any(axis=1) | (self.short_rows_count & (ids < 0).any(axis=1))
        found = Found.nothing(len(queries), ids.shape[1])
        old, lost = np.flatnonzero(~anew), np.flatnonzero(anew)
        if len(old):
            found.put(old, self.news(queries.take(old), pack(distances[old], ids[old], ids[old] >= 0)))
        if len(lost):
            found.put(lost, self.seek(queries.take(lost)))
        self.done.merged_rows += len(old)
        self.done.searched_rows += len(lost)
        return found


def update(
    former: Former,
    shard: QueryShard,
    chunks: IndexedChunks,
    k: int,
    width: Width | None,
    cells: int,
    device: Device,
    refuse: Refuse | None,
    seek: Seek,
    limit: MemoryLimit,
    loaded: dict[tuple[str, ...], Index],
) -> Update:
    """What is new is searched exactly if it is little or ``width`` is None, else by an index of its own. ``loaded``:
    such indexes by what they were made from, for the next shard.

    BadInputError when the former neighbours are damaged: they would go on as part of a sound file.
    """
    for uri in (former.neighbours, distances_uri(former.neighbours)):
        report.check_unchanged(uri)
    offsets = np.array([-1 if at is None else chunks.offsets[at] for at in former.positions], np.int64)
    old = frozenset(former.positions)
    new = [at for at in range(len(chunks.embeddings)) if at not in old]
    count = sum(len(chunks.embeddings[at]) for at in new)
    by_index = width is not None and count > index_types.FLAT_VECTORS
    if not by_index or width is None:
        compare = comparer(device)

        def news(queries: Queries, known: Keys) -> Found:
            return reranking.exact_search(queries, k, chunks.blocks_of(new), refuse, known, compare)
    else:
        if former.partials not in loaded:
            loaded[former.partials] = _index_of(former, chunks, new, device, refuse, limit)
        index = loaded[former.partials]

        def news(queries: Queries, known: Keys) -> Found:
            found = reranking.candidates(queries, k, index, index.clip(width), cells)
            return Found(smallest(np.concatenate((known, found.keys), axis=1), k), found.removed)

    # An index may have missed what a short row lacks; a row that was full before stays full.
    return Update(former, shard, offsets, news, seek, short_rows_count=by_index)


def _index_of(
    former: Former, chunks: IndexedChunks, new: list[int], device: Device, refuse: Refuse | None, limit: MemoryLimit
) -> Index:
    """An index of the shards ``new`` alone, whose ids are those of all."""
    if parts := open_if_larger_than(limit, former.partials):
        return search_in_parts(parts, chunks, new, device, refuse, limit)
    index = load_index(former.trained)
    for uri in former.partials:
        filling.merge(index, load_index(uri), uri)
    counts = np.array([len(chunks.embeddings[at]) for at in new], np.int64)
    if index.ntotal != counts.sum():
        raise BadInputError(f"the partial indexes of the new shards hold {index.ntotal:,} of {counts.sum():,} chunks")
    return search_of(index, chunks, new, device, refuse)
