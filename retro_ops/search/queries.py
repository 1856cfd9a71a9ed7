"""Query shards: opens them, reads their rows, and samples them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.index.sampling import sample_rows
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, Split
from retro_ops.plan.specs import IndexShard
from retro_ops.search import filters
from retro_ops.search.chunk_reader import BLOCK_ROWS, Documents, IndexedChunks
from retro_ops.search.hits import Queries
from retro_ops.search.jobs import Job
from retro_ops.storage import read_ahead
from retro_ops.storage.npy import NpyReader, open_npy

UNKNOWN_DOCUMENT = np.uint64(2**63)
"""Base of the identity of an unknown document: with the row number added, it equals no other."""


@dataclass(frozen=True)
class QueryShard:
    """Rows to find neighbours for.

    ``documents``: identities of the documents, which hold this shard at ``position``; None if they are unknown.
    ``tokens``: only if a filter compares them.
    """

    embeddings: NpyReader
    documents: Documents | None
    position: int = 0
    tokens: NpyReader | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, start: int, stop: int) -> Queries:
        vectors = self.embeddings.rows(start, stop).astype(np.float16, copy=False)
        tokens = self.tokens.rows(start, stop) if self.tokens else None
        if self.documents is None:
            unknown = UNKNOWN_DOCUMENT + np.arange(start, start + len(vectors), dtype=np.uint64)
            return Queries(vectors, unknown, tokens)
        return Queries(vectors, self.documents.rows(self.position, start, stop), tokens)


@dataclass(frozen=True)
class StoredRows:
    """Rows of query shards, read when a search asks for them; a ``QueryRows``.

    ``rows`` (ascending) are counted through all ``shards``.
    """

    shards: Sequence[QueryShard]
    rows: range | NDArray[np.int64]

    @staticmethod
    def of(shards: Sequence[QueryShard]) -> "StoredRows":
        return StoredRows(shards, range(sum(map(len, shards))))

    def __len__(self) -> int:
        return len(self.rows)

    def between(self, start: int, stop: int) -> "StoredRows":
        return StoredRows(self.shards, self.rows[start:stop])

    def read(self, start: int, stop: int) -> Queries:
        return join([take(*of) for of in self._by_shard(self.rows[start:stop])])

    def each(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Queries]:
        row_bytes = self.shards[0].embeddings.row_bytes
        return read_ahead.ahead(((stop - start) * row_bytes, partial(self.read, start, stop)) for start, stop in ranges)

    def select(self, rows: NDArray[np.int64]) -> "StoredRows":
        return StoredRows(self.shards, np.asarray(self.rows, np.int64)[rows])

    def read_tokens(self) -> filters.Tokens:
        parts = [(shard.tokens, local) for shard, local in self._by_shard(self.rows)]
        return np.concatenate([take_rows(reader, local) for reader, local in parts if reader is not None])

    def _by_shard(self, rows: range | NDArray[np.int64]) -> list[tuple[QueryShard, range | NDArray[np.int64]]]:
        """Each shard that holds any of ``rows`` (ascending), and these rows as the shard counts them; for no rows, none
        of the first shard."""
        first, found = 0, []
        for shard in self.shards:
            end = first + len(shard)
            low, high = bisect_left(rows, first), bisect_left(rows, end)
            if low < high:
                of = rows[low:high]
                local = range(of[0] - first, of[-1] + 1 - first) if isinstance(of, range) else of - first
                found.append((shard, local))
            first = end
        return found or [(self.shards[0], range(0))]


def open_arrays(job: Job, indexed: NpyReader) -> tuple[NpyReader, NpyReader]:
    """Embeddings and chunk2seq of the query shard of ``job``.

    BadInputError unless they are of the same chunks and have the dimension of ``indexed``, embeddings of the index.
    """
    embeddings = open_npy(job.embeddings, ndim=2, kind="f", finite=True)
    chunk2seq = open_npy(job.chunk2seq, ndim=1, kind="iu")
    if len(embeddings) != len(chunk2seq):
        raise BadInputError(
            f"{job.embeddings} has {len(embeddings):,} rows, {job.chunk2seq} has {len(chunk2seq):,}",
            "they must come from the same chunks",
        )
    if embeddings.shape[1] != indexed.shape[1]:
        raise BadInputError(
            f"{job.embeddings} has {embeddings.shape[1]} dimensions, {job.index} has {indexed.shape[1]}",
            "embed the queries with the model of the index",
        )
    return embeddings, chunk2seq


def query_shard(chunks: IndexedChunks, position: int, with_tokens: bool) -> QueryShard:
    """The shard at ``position`` of the index, as queries."""
    tokens = chunks.chunks[position] if with_tokens else None
    return QueryShard(chunks.embeddings[position], chunks.documents, position, tokens)


def other_shard(shard: IndexShard, chunks: IndexedChunks, with_tokens: bool) -> QueryShard:
    """A shard that the index does not hold, as queries.

    Its documents are known only if documents are identified by content, here and in the index: then a copy of an
    indexed document is recognised.
    """
    documents = Documents([shard.chunks], [shard.chunk2seq])
    known = documents.by_content and chunks.documents.by_content
    tokens = open_npy(shard.chunks, ndim=2, kind="u") if with_tokens else None
    return QueryShard(
        open_npy(shard.embeddings, ndim=2, kind="f", finite=True), documents if known else None, tokens=tokens
    )


def query_shards(plan: Plan, split: Split, chunks: IndexedChunks, with_tokens: bool) -> dict[str, QueryShard]:
    """All query shards of ``split``, by name and in the order of the plan. ``chunks``: those of the index."""
    places = {shard.name: at for at, shard in enumerate(plan.indexed(split))}
    return {
        shard.name: query_shard(chunks, places[shard.name], with_tokens)
        if shard.indexed
        else other_shard(paths.index_shard(plan, shard.name), chunks, with_tokens)
        for shard in plan.queried(split)
    }


def count_queries(plan: Plan, split: Split) -> dict[str, int]:
    """Rows of each query shard of ``split``, by name and in the order of the plan."""
    names = [shard.name for shard in plan.queried(split)]
    readers = read_ahead.side_by_side(open_npy, [paths.embeddings_uri(plan, name) for name in names])
    return dict(zip(names, map(len, readers), strict=True))


def sample(shards: Sequence[QueryShard], count: int, seed: int) -> Queries:
    """A uniform sample of ``count`` rows of all ``shards``, without replacement."""
    drawn = sample_rows(np.array([len(s) for s in shards], np.int64), count, seed)
    chosen = [of for of in zip(shards, drawn, strict=True) if len(of[1])] or [(shards[0], drawn[0])]
    return join(read_ahead.side_by_side(lambda of: take(*of), chosen, read_ahead.READERS))


def take(shard: QueryShard, rows: range | NDArray[np.int64]) -> Queries:
    """Rows ``rows`` (ascending) of ``shard``."""
    if isinstance(rows, range):
        return shard.rows(rows.start, rows.stop)
    parts = [shard.rows(first, end).take(local) for first, end, local in _spans(rows)]
    return join(parts or [shard.rows(0, 0)])


def take_rows(reader: NpyReader, rows: range | NDArray[np.int64]) -> NDArray[Any]:
    """Rows ``rows`` (ascending) of an array."""
    if isinstance(rows, range):
        return reader.rows(rows.start, rows.stop)
    parts = [reader.rows(first, end)[local] for first, end, local in _spans(rows)]
    return np.concatenate(parts or [reader.rows(0, 0)])


def _spans(rows: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(first, end, rows - first) of the range to read in each block that holds any of ``rows`` (ascending)."""
    for of in np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1):
        if len(of):
            yield int(of[0]), int(of[-1]) + 1, of - of[0]


def join(parts: Sequence[Queries]) -> Queries:
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Queries(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.documents for part in parts]),
        np.concatenate(tokens) if tokens else None,
    )
