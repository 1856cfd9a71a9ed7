"""Arrays of shards, memory-mapped when they are first used, and rows of many shards at once."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_data.cache import Cache
from retro_ops.errors import BadInputError
from retro_ops.storage import npy

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Array:
    """An array in the store. Only its header is read before ``map`` is used."""

    reader: npy.NpyReader
    cache: Cache

    def __len__(self) -> int:
        return len(self.reader)

    @functools.cached_property
    def map(self) -> NDArray[Any]:
        """All rows, memory-mapped from a local file."""
        path = self.cache.path(self.reader.uri)
        mapped = np.memmap(path, self.reader.dtype, "r", self.reader.offset, self.reader.shape)
        return np.asarray(mapped)  # Without the subclass, whose every slice costs more than reading it.

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped rows: a worker process maps them again."""
        return {"reader": self.reader, "cache": self.cache}


@dataclass(frozen=True)
class Shard:
    """The arrays of a shard. ``neighbours`` and ``distances`` are None where the shard only is in an index."""

    name: str
    chunks: Array
    seq2chunk: Array
    chunk2seq: Array
    neighbours: Array | None = None
    distances: Array | None = None
    embeddings: str | None = None
    """URI, since embeddings are only read by range."""

    def __len__(self) -> int:
        return len(self.chunks)


class Chunks:
    """The chunks of several shards under consecutive ids, in the order of the shards."""

    def __init__(self, shards: Sequence[Shard], pad_id: int) -> None:
        self.shards = tuple(shards)
        self.pad_id = pad_id
        self.offsets: Ids = np.cumsum([0, *(len(shard) for shard in self.shards)], dtype=np.int64)
        """First id of each shard, and the number of all chunks."""
        sizes = {(shard.chunks.reader.shape[1], shard.chunks.reader.dtype) for shard in self.shards}
        if len(sizes) > 1:
            raise BadInputError(
                f"the shards have chunks of different sizes or dtypes: {sorted(map(str, sizes))}",
                "build them with one chunk size and tokenizer",
            )
        self.size: int
        self.dtype: np.dtype[Any]
        self.size, self.dtype = sizes.pop() if sizes else (0, np.dtype(np.uint16))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def located(self, ids: Ids) -> tuple[Ids, Ids]:
        """Number of the shard, and row in it, of each id."""
        shards = np.searchsorted(self.offsets, ids, side="right") - 1
        return shards, ids - self.offsets[shards]

    def take(self, name: str, ids: Ids) -> NDArray[Any]:
        """Rows ``[n, …]`` of the arrays ``name`` (``"chunks"``, ``"neighbours"``, …)."""
        out: NDArray[Any] | None = None
        for shard, places, rows in self.groups(ids):
            found = getattr(shard, name).map[rows]
            if out is None:
                out = np.empty((len(ids), *found.shape[1:]), found.dtype)
            out[places] = found
        if out is None:  # Not any id.
            like = getattr(self.shards[0], name).reader if self.shards else None
            return np.empty((0, 0), np.int64) if like is None else np.empty((0, *like.shape[1:]), like.dtype)
        return out

    def groups(self, ids: Ids) -> Iterator[tuple[Shard, Ids, Ids]]:
        """(shard, positions in ``ids``, rows in the shard), ascending, so that pages of a file are read in order."""
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        if len(ids) and not (ascending[0] >= 0 and ascending[-1] < len(self)):
            raise IndexError(f"chunk ids {ascending[0]:,} to {ascending[-1]:,}, but there are {len(self):,} chunks")
        bounds = np.searchsorted(ascending, self.offsets)
        for number in np.flatnonzero(np.diff(bounds)):
            places = slice(bounds[number], bounds[number + 1])
            yield self.shards[number], order[places], ascending[places] - self.offsets[number]

    def with_continuation(self, ids: Ids, continuation: int) -> NDArray[Any]:
        """Tokens ``[n, (1 + continuation) * size]``: each chunk, and those that follow it in its document.

        Padded with the pad id where the document ends. An id of -1 gives padding only.
        """
        out = np.full((len(ids), 1 + continuation, self.size), self.pad_id, self.dtype)
        (present,) = np.nonzero(ids != -1)
        for shard, places, rows in self.groups(ids[present]):
            targets = present[places]
            out[targets, 0] = shard.chunks.map[rows]
            documents = shard.chunk2seq.map[rows] if continuation else rows
            for step in range(1, continuation + 1):
                inside = rows + step < len(shard)
                targets, rows, documents = targets[inside], rows[inside], documents[inside]
                same = shard.chunk2seq.map[rows + step] == documents
                targets, rows, documents = targets[same], rows[same], documents[same]
                out[targets, step] = shard.chunks.map[rows + step]
        return out.reshape(len(ids), (1 + continuation) * self.size)
