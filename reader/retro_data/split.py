"""Training or validation rows: chunks with their neighbours."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_data import windows
from retro_data.arrays import Chunks, Ids
from retro_data.documents import Document, Documents
from retro_data.text import Decoder
from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.storage import npy


@dataclass(frozen=True)
class Split:
    """The chunks that have neighbours, numbered in the order of the dataset spec: one row a chunk.

    ``chunks``: these chunks. ``index``: the chunks that neighbours are among, under the ids that neighbours use.
    """

    name: str
    chunks: Chunks
    index: Chunks
    documents: Documents
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.chunks)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self):,} rows)"

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[np.integer[Any]]) -> "Rows":
        """Rows by number, slice or list of numbers. Raises IndexError for a number that does not exist."""
        if isinstance(rows, slice):
            return Rows(self, np.arange(*rows.indices(len(self)), dtype=np.int64))
        numbers = np.asarray(rows)
        if numbers.dtype == np.bool_:
            numbers = np.flatnonzero(numbers)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(f"rows are numbered by integers, not {numbers.dtype}")
        numbers = numbers.astype(np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"{self.name} has {len(self):,} rows, numbered from 0")
        return Rows(self, numbers)

    @property
    def chunk_size(self) -> int:
        """Tokens of a chunk."""
        return self.chunks.size

    @property
    def pad_id(self) -> int:
        return self.chunks.pad_id

    @property
    def fingerprint(self) -> str:
        """Equal for splits with the same shards of the same lengths, such as a published one and its export."""
        shards = [[shard.name, len(shard)] for shard in self.chunks.shards]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]

    @property
    def num_neighbours(self) -> int:
        """Neighbours of each row."""
        first = self.chunks.shards[0].neighbours if self.chunks.shards else None
        return first.reader.shape[1] if first is not None else 0

    def check_k(self, k: int | None) -> None:
        """Raise BadInputError if rows do not have ``k`` neighbours. None is all that are stored."""
        stored = self.num_neighbours
        if k is not None and not 0 <= k <= stored:
            raise BadInputError(
                f"k is {k}, but the dataset stores {stored} neighbours of each chunk",
                f"give a k from 0 to {stored}; more neighbours need a dataset built with a larger "
                f"{PARAMETERS['num_neighbours'].flag}",
            )

    def windows(self, length: int) -> "Windows":
        """All documents cut into windows of at most ``length`` chunks."""
        return Windows(self, length)

    def embeddings(self, start: int, stop: int) -> NDArray[np.float16]:
        """Embeddings ``[stop - start, d]`` of a range of rows, read from the store in that range."""
        return self._range("embeddings", start, stop)

    def document_ids(self, start: int, stop: int) -> NDArray[np.uint64]:
        """For a range of rows, 64 bits that are equal for equal documents, in any shard and version."""
        return self._range("document_ids", start, stop)

    def _range(self, name: str, start: int, stop: int) -> NDArray[Any]:
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"rows {start:,} to {stop:,}, but {self.name} has {len(self):,} rows")
        parts = []
        for shard, first in zip(self.chunks.shards, self.chunks.offsets.tolist(), strict=False):
            if first < stop and start < first + len(shard):
                uri = shard.embeddings if name == "embeddings" else self.documents.ids_uri(shard)
                if uri is None:
                    raise BadInputError(f"{name} of shard {shard.name!r} are not known", "open the published dataset")
                reader = npy.open_npy(uri)
                if len(reader) != len(shard):
                    raise BadInputError(
                        f"{uri} has {len(reader):,} rows, its shard {len(shard):,} chunks", "rebuild it"
                    )
                parts.append(reader.rows(max(0, start - first), stop - first))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Rows:
    """Some rows of a split; ``numbers`` is a single number or ``[n]``, and so is the front of every shape here."""

    split: Split
    numbers: Ids

    def __len__(self) -> int:
        return len(self.numbers)

    @functools.cached_property
    def tokens(self) -> NDArray[Any]:
        """Token ids ``[…, chunk_size]``, uint16 or uint32."""
        return self._take("chunks")

    @functools.cached_property
    def neighbours(self) -> Ids:
        """Ids ``[…, k]`` of the neighbours in ``split.index``, nearest first; -1 = none, always last."""
        return self._take("neighbours").astype(np.int64, copy=False)

    @functools.cached_property
    def distances(self) -> NDArray[np.float32]:
        """Squared L2 distances ``[…, k]``; infinity where there is no neighbour.

        Raises BadInputError where a shard has none, as in datasets of the original scripts.
        """
        for shard, _, _ in self.split.chunks.groups(self.numbers.reshape(-1)):
            if shard.distances is None:
                raise BadInputError(f"shard {shard.name!r} has no distances", "the original scripts store none")
        return self._take("distances")

    def retrieved(self, k: int | None = None, continuation: int = 1) -> NDArray[Any]:
        """Tokens ``[…, k, (1 + continuation) * chunk_size]`` of the first ``k`` neighbours (default: all).

        A neighbour is its chunk and the ``continuation`` chunks that follow it in its document, padded with the pad id
        where the document ends. A missing neighbour is padding only. Raises BadInputError if ``k`` is above the
        number of stored neighbours.
        """
        self.split.check_k(k)
        ids = self.neighbours[..., :k]
        tokens = self.split.index.with_continuation(ids.reshape(-1), continuation)
        return tokens.reshape(*ids.shape, tokens.shape[1])

    def documents(self) -> list[Document]:
        """The document of each row, with its source. ``[0]`` for a single row."""
        return self.split.documents.of(self.split.chunks, self.numbers.reshape(-1))

    def neighbour_documents(self) -> list[list[Document | None]]:
        """The document of each neighbour of each row; None where there is no neighbour."""
        ids = self.neighbours.reshape(-1, self.split.num_neighbours)
        found = iter(self.split.documents.of(self.split.index, ids[ids != -1]))
        return [[None if number == -1 else next(found) for number in row] for row in ids.tolist()]

    def text(self) -> list[str]:
        """Text of each row, without special tokens. ``[0]`` for a single row."""
        return self.split.decoder.text(self.tokens.reshape(-1, self.split.chunk_size))

    def neighbour_text(self, continuation: int = 0) -> list[list[str]]:
        """Text of each neighbour of each row, empty where there is no neighbour."""
        tokens = self.retrieved(continuation=continuation)
        found = iter(self.split.decoder.text(tokens.reshape(-1, tokens.shape[-1])))
        return [[next(found) for _ in row] for row in self.neighbours.reshape(-1, self.split.num_neighbours)]

    def _take(self, name: str) -> NDArray[Any]:
        found = self.split.chunks.take(name, self.numbers.reshape(-1))
        return found.reshape(*self.numbers.shape, *found.shape[1:])


class Windows:
    """The windows of a split: each chunk is in exactly one. See ``retro_data.torch`` for PyTorch datasets."""

    def __init__(self, split: Split, length: int) -> None:
        if length < 1:
            raise BadInputError(f"windows of {length} chunks", "give a length of 1 or more")
        self.split, self.length = split, length

    @functools.cached_property
    def _starts(self) -> list[windows.Starts]:
        shards = self.split.chunks.shards
        return [windows.Starts.of(shard.seq2chunk.map, len(shard), self.length) for shard in shards]

    def __len__(self) -> int:
        return sum(map(len, self._starts))

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays: a worker process maps them again."""
        return {"split": self.split, "length": self.length}

    def spans(self, numbers: Sequence[int] | Ids) -> tuple[Ids, Ids]:
        """First row and number of rows of each window."""
        wanted = np.asarray(numbers, np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"there are {len(self):,} windows, numbered from 0")
        return windows.spans(self._starts, self.split.chunks.offsets, wanted, self.length)

    def batch(
        self, numbers: Sequence[int] | Ids, k: int | None = None, continuation: int = 1
    ) -> dict[str, NDArray[Any]]:
        """The arrays of some windows, ``[n, …]``, with the names and dtypes of the original's trainer.

        ``input_ids``: int32 ``[n, length * chunk_size]``; ``neighbour_ids``: int32 ``[n, length, k, (1 + continuation)
        * chunk_size]``; ``labels``: int64, the token after each one, -100 at padding and at the end of the window;
        ``chunks``: int64 ``[n]``, chunks of each window. Shorter windows are padded with the pad id.
        """
        split = self.split
        first, counts = self.spans(numbers)
        inside = np.arange(self.length) < counts[:, None]
        rows = Rows(split, (first[:, None] + np.arange(self.length))[inside])
        tokens = np.full((len(first), self.length, split.chunk_size), split.pad_id, np.int32)
        tokens[inside] = rows.tokens
        of_rows = rows.retrieved(k, continuation)
        neighbours = np.full((len(first), self.length, *of_rows.shape[1:]), split.pad_id, np.int32)
        neighbours[inside] = of_rows
        input_ids = tokens.reshape(len(first), self.length * split.chunk_size)
        labels = windows.labels(input_ids, split.pad_id)
        return {"input_ids": input_ids, "neighbour_ids": neighbours, "labels": labels, "chunks": counts}
