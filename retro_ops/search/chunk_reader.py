"""Reads the chunks of an index (embeddings, documents and tokens) as the search needs them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.limits import MOST_CHUNKS
from retro_ops.plan.specs import IndexShard
from retro_ops.search import filters
from retro_ops.search.hits import Block, Blocks
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyReader, open_npy

BLOCK_ROWS = 8192

KEPT_BYTES = 128 * 2**20
"""Blocks of several files are slow to read: so many bytes of them are kept."""

FEW_PARTS = 4
"""So many files of a block are read one after the other, more of them side by side."""


class Documents:
    """Identity of the document of each chunk, uint64.

    By content, from the files that `tokenize-and-chunk` writes, so that copies are recognised in any shard. If one of
    the shards has no such file (arrays from elsewhere), by place: number of the shard, and of the document in it.
    """

    def __init__(self, chunks: Sequence[str], chunk2seqs: Sequence[str]) -> None:
        uris = [paths.document_ids_uri(uri) for uri in chunks]
        self.by_content = all(read_ahead.side_by_side(store.exists, uris))
        opened = partial(open_npy, ndim=1, kind="u" if self.by_content else "i")
        self._readers = read_ahead.side_by_side(opened, uris if self.by_content else chunk2seqs)

    def rows(self, position: int, start: int, stop: int) -> NDArray[np.uint64]:
        rows = self._readers[position].rows(start, stop)
        return rows if self.by_content else rows.astype(np.uint64) + np.uint64(position << 32)


class IndexedChunks:
    """The chunks of the shards of an index spec, read block by block.

    1. Global ids follow the order of the shards: those of shard ``i`` begin at ``offsets[i]``.
    2. The ids are cut into blocks: BLOCK_ROWS rows of one shard, or several small shards that follow one another.
    3. For some ids, only the blocks that hold any of them are read, and of each only the rows from the first such id
       to the last.
    4. The next blocks are read while the caller works on one.
    5. A block in one file is one request. A block of several files takes one for each, so it is read whole and, up to
       KEPT_BYTES, kept.
    """

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        opened = partial(open_npy, ndim=2, kind="f", finite=True)
        self.embeddings = read_ahead.side_by_side(opened, [shard.embeddings for shard in shards])
        self._kept: dict[tuple[int, int], Block] = {}
        self._kept_bytes = 0
        self._chunks = [shard.chunks for shard in shards]
        self.documents = Documents([shard.chunks for shard in shards], [shard.chunk2seq for shard in shards])
        self.offsets = np.concatenate(([0], np.cumsum([len(reader) for reader in self.embeddings]))).astype(np.int64)
        self.total = int(self.offsets[-1])
        if self.total > MOST_CHUNKS:
            raise BadInputError(f"the index spec names {self.total:,} chunks, more than {MOST_CHUNKS:,}", "split it")

    @cached_property
    def chunks(self) -> list[NpyReader]:
        """Tokens by shard. Opened when needed: only filters and dataset cards read them."""
        return read_ahead.side_by_side(partial(open_npy, ndim=2, kind="u"), self._chunks)

    def blocks(self, wanted: NDArray[np.int64] | None) -> Iterator[Block]:
        return self.blocks_of(range(len(self.embeddings)))(wanted)

    def blocks_of(self, positions: Iterable[int]) -> Blocks:
        """Blocks of the shards at ``positions`` (ascending)."""
        return self._blocks_of(self._cuts(positions))

    def blocks_between(self, first: int, end: int) -> Blocks:
        """Blocks of the chunks ``first:end`` by global id."""
        cuts = self._cuts(range(len(self.embeddings)))
        return self._blocks_of([(max(low, first), min(high, end)) for low, high in cuts if low < end and high > first])

    def _blocks_of(self, cuts: Sequence[tuple[int, int]]) -> Blocks:

        def ranges(wanted: NDArray[np.int64] | None) -> Iterator[tuple[tuple[int, int], int, int]]:
            if wanted is None:
                yield from ((cut, *cut) for cut in cuts)
                return
            for cut, of in _wanted(cuts, wanted):
                yield cut, int(wanted[of.start]), int(wanted[of.stop - 1]) + 1

        row_bytes = self.embeddings[0].row_bytes + np.dtype(np.uint64).itemsize

        def read(cut: tuple[int, int], first: int, end: int) -> read_ahead.Read[Block]:
            rows = end - first if self._in_one_shard(cut) else cut[1] - cut[0]
            return rows * row_bytes, partial(self._block, cut, first, end)

        return lambda wanted: read_ahead.ahead(read(*of) for of in ranges(wanted))

    def _cuts(self, positions: Iterable[int]) -> list[tuple[int, int]]:
        """(first id, end) of each block: BLOCK_ROWS rows of a shard, or small shards that follow one another."""
        cuts: list[tuple[int, int]] = []
        for start, end in ((int(self.offsets[at]), int(self.offsets[at + 1])) for at in positions):
            if cuts and start < end and cuts[-1][1] == start and end - cuts[-1][0] <= BLOCK_ROWS:
                cuts[-1] = cuts[-1][0], end
            else:
                cuts += [(first, min(first + BLOCK_ROWS, end)) for first in range(start, end, BLOCK_ROWS)]
        return cuts

    def ids_of(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Global ids of the chunks of the shards at ``positions``, int64."""
        return np.concatenate([np.arange(self.offsets[at], self.offsets[at + 1]) for at in positions])

    def tokens(self, ids: NDArray[np.int64]) -> filters.Tokens:
        """Tokens of the chunks ``ids`` ``[n]``, in any order: ``[n, chunk_size]``."""
        dtype = np.result_type(*{reader.dtype for reader in self.chunks})
        return self.gather(ids, np.empty((len(ids), self.chunks[0].shape[1]), dtype), lambda i: self.chunks[i].rows)

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """Embeddings of the chunks ``ids`` ``[n]``, in any order: ``[n, d]``."""
        out = np.empty((len(ids), *self.embeddings[0].shape[1:]), np.float16)
        return self.gather(ids, out, lambda i: self.embeddings[i].rows)

    def owners(self, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Identity of the document of each of the chunks ``ids`` ``[n]``, in any order: uint64 ``[n]``."""
        return self.gather(ids, np.empty(len(ids), np.uint64), lambda i: partial(self.documents.rows, i))

    def gather(
        self, ids: NDArray[np.int64], out: NDArray[Any], rows_of: Callable[[int], Callable[[int, int], NDArray[Any]]]
    ) -> NDArray[Any]:
        """Puts the rows ``ids`` into ``out``. Each block is read once; ``rows_of``: the reader of a shard."""
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        wanted = [of for _, of in _wanted(self._cuts(range(len(self.embeddings))), ascending)]
        bounds = [(int(ascending[of][0]), int(ascending[of][-1]) + 1) for of in wanted]
        row_bytes = out.nbytes // max(1, len(out))
        reads = (((end - first) * row_bytes, partial(self._rows, first, end, rows_of)) for first, end in bounds)
        for of, rows in zip(wanted, read_ahead.ahead(reads), strict=True):
            out[order[of]] = rows[ascending[of] - ascending[of][0]]
        return out

    def _block(self, cut: tuple[int, int], first: int, end: int) -> Block:
        """Chunks ``first:end`` of the block ``cut``, all by global id."""
        if self._in_one_shard(cut):
            return self._read(first, end)
        whole = self._kept.get(cut)
        if whole is None:
            whole = self._read(*cut)
            if self._kept_bytes + whole.vectors.nbytes <= KEPT_BYTES:
                self._kept[cut] = whole
                self._kept_bytes += whole.vectors.nbytes
        rows = slice(first - cut[0], end - cut[0])
        return Block(first, whole.vectors[rows], whole.documents[rows])

    def _in_one_shard(self, cut: tuple[int, int]) -> bool:
        return bool(np.searchsorted(self.offsets, cut[0], side="right") == np.searchsorted(self.offsets, cut[1]))

    def _read(self, first: int, end: int) -> Block:
        vectors = self._rows(first, end, lambda i: self.embeddings[i].rows).astype(np.float16, copy=False)
        return Block(first, vectors, self._rows(first, end, lambda i: partial(self.documents.rows, i)))

    def _rows(self, first: int, end: int, rows_of: Callable[[int], Callable[[int, int], NDArray[Any]]]) -> NDArray[Any]:
        """Rows of the chunks ``first:end`` (global ids), from all shards that hold them."""
        at = range(int(np.searchsorted(self.offsets, first, side="right")) - 1, int(np.searchsorted(self.offsets, end)))

        def part(position: int) -> NDArray[Any]:
            offset = int(self.offsets[position])
            return rows_of(position)(max(first - offset, 0), min(end, int(self.offsets[position + 1])) - offset)

        parts = [part(i) for i in at] if len(at) <= FEW_PARTS else read_ahead.side_by_side(part, at)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _wanted(cuts: Sequence[tuple[int, int]], ids: NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], slice]]:
    """Each block that holds any of the ``ids`` (ascending), and the slice of ``ids`` that it holds."""
    bounds = np.searchsorted(ids, np.array(cuts, np.int64).reshape(-1, 2))
    for cut, (low, high) in zip(cuts, bounds.tolist(), strict=True):
        if low < high:
            yield cut, slice(low, high)
