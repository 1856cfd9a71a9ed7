"""Memory maps of lucidrains/RETRO-pytorch, for its ``RETRODataset``.

``chunks.dat`` and ``chunks.knn.dat`` have one row for each chunk of the index of the last split (training ids are the
same in it), then those of shards that are only queried. A chunk has one more token: the first of the next chunk in its
document. ``<split>.seq.dat`` has the first chunk of each sequence. RETRO-pytorch finds the end of a document by its end
token, so each document must end with the same one. ``retro.json`` has the arguments of ``RETRODataset``.
"""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.export.record import ExportRecord
from retro_ops.export.version import ExportShard, ExportVersion, provenance
from retro_ops.progress import Progress
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.storage.checked import copy
from retro_ops.storage.npy import open_npy

SEQUENCE_LENGTH = 2048
ROWS = 8192
MOST_CHUNKS = 2**31 - 1
"""RETRO-pytorch keeps chunk ids as int32."""


def export(version: ExportVersion, record: ExportRecord, chosen: Collection[str], sequence_length: int) -> int:
    """Write the memory maps, with neighbours and sequences of the shards ``chosen``, in bounded memory.

    Returns the number of files that were written. Raises BadInputError if the documents have no common end token or the
    version more chunks than int32 holds.
    """
    shards = version.shards()
    size = open_npy(shards[0].chunks).shape[1]
    if sequence_length < size or sequence_length % size:
        raise BadInputError(f"--sequence-length {sequence_length} is no multiple of {size}", f"give {32 * size}")
    total = sum(len(open_npy(shard.chunks)) for shard in shards)
    if total > MOST_CHUNKS:
        raise BadInputError(f"{total:,} chunks; RETRO-pytorch reads up to {MOST_CHUNKS:,}", "export another format")
    writer = _MemoryMaps(version, shards, chosen, sequence_length // size)
    pad_id = int(version.files.manifest["identity"]["pad_id"])
    end_id = writer.end_token(pad_id)
    files: dict[str, tuple[list[str], Callable[[], Iterator[NDArray[Any]]]]] = {
        "chunks.dat": (["chunks", "chunk2seq"], partial(writer.chunks, pad_id, end_id)),
        "chunks.knn.dat": (["neighbours"], writer.neighbours),
        "doc_ids.dat": (["chunk2seq"], writer.documents),
        **{f"{split}.seq.dat": (["seq2chunk"], partial(writer.sequences, split)) for split in writer.splits},
    }
    progress = Progress("export", len(files), "files")
    new = 0
    for name, (kinds, blocks) in files.items():
        uris = [getattr(shard, kind) for kind in kinds for shard in shards if getattr(shard, kind)]
        origin = [name, sorted(chosen), sequence_length, end_id, [version.sum(uri) for uri in uris]]
        new += record.ensure(name, origin, partial(_write, blocks))
        progress.advance(1)
    progress.close()
    for shard in shards:
        for kind, uri in provenance(shard, version).items():
            sha256 = version.sum(uri)
            name = f"documents/{shard.name}.{kind}"
            new += record.ensure(name, [sha256], partial(copy, uri, sha256=sha256))
    about = {"eos_id": end_id, "pad_id": pad_id, "chunk_size": size, "seq_len": sequence_length}
    new += record.ensure("retro.json", [about, total], partial(_write_about, {**about, "num_chunks": total}, writer))
    return new


class _MemoryMaps:
    """The rows of the memory maps, block by block."""

    def __init__(
        self, version: ExportVersion, shards: Sequence[ExportShard], chosen: Collection[str], sequence_chunks: int
    ) -> None:
        self._version, self._shards, self._chosen = version, shards, chosen
        self._sequence_chunks = sequence_chunks
        self._size = open_npy(shards[0].chunks).shape[1]
        queried = [shard for shard in shards if shard.neighbours and shard.name in chosen]
        self.splits = list(dict.fromkeys(shard.split for shard in queried))
        first = next((shard.neighbours for shard in shards if shard.neighbours), None)
        self.num_neighbours = open_npy(first).shape[1] if first else 0

    def end_token(self, pad_id: int) -> int:
        """The last token of the first document."""
        for shard in self._shards:
            documents = open_npy(shard.seq2chunk)
            if len(documents):
                chunks = open_npy(shard.chunks)
                end = int(documents.rows(1, 2)[0]) if len(documents) > 1 else len(chunks)
                last = chunks.rows(end - 1, end)[0]
                return int(last[last != pad_id][-1]) if (last != pad_id).any() else pad_id
        return pad_id

    def chunks(self, pad_id: int, end_id: int) -> Iterator[NDArray[np.int32]]:
        for shard in self._shards:
            tokens = self._version.rows(shard.chunks, ROWS, overlap=1)
            owners = self._version.rows(shard.chunk2seq, ROWS, overlap=1)
            for block, of in zip(tokens, owners, strict=True):
                rows = min(ROWS, len(block))
                out = np.full((rows, block.shape[1] + 1), pad_id, np.int32)
                out[:, :-1] = block[:rows]
                (follows,) = np.nonzero(of[1:] == of[:-1])
                out[follows, -1] = block[follows + 1, 0]
                last = np.ones(rows, np.bool_)
                last[follows] = False
                _check_end(block[:rows][last], end_id, shard.chunks)
                yield out
        yield np.full(
            (self._sequence_chunks, self._size + 1), pad_id, np.int32
        )  # The last sequence may reach beyond the end.

    def neighbours(self) -> Iterator[NDArray[np.int32]]:
        for shard in self._shards:
            if shard.neighbours and shard.name in self._chosen:
                for block in self._version.rows(shard.neighbours, ROWS):
                    yield block.astype(np.int32)
            else:
                yield from self._missing(len(open_npy(shard.chunks)))
        yield from self._missing(self._sequence_chunks)

    def documents(self) -> Iterator[NDArray[np.int32]]:
        """Number of the document of each chunk, over all shards."""
        first = 0
        for shard in self._shards:
            for block in self._version.rows(shard.chunk2seq, ROWS * 8):
                yield (block + first).astype(np.int32)
            first += len(open_npy(shard.seq2chunk))

    def sequences(self, split: str) -> Iterator[NDArray[np.int32]]:
        """First chunk of each sequence: documents are cut into as many chunks as a sequence has."""
        first = 0
        for shard in self._shards:
            chunks = len(open_npy(shard.chunks))
            if shard.split == split and shard.neighbours and shard.name in self._chosen:
                for block in self._version.rows(shard.seq2chunk, ROWS, overlap=1):
                    ends = np.append(block[1:], chunks) if len(block) <= ROWS else block[1:]
                    starts = block[: len(ends)]
                    counts = -(-(ends - starts) // self._sequence_chunks)
                    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
                    yield (np.repeat(starts, counts) + within * self._sequence_chunks + first).astype(np.int32)
            first += chunks

    def _missing(self, rows: int) -> Iterator[NDArray[np.int32]]:
        for start in range(0, rows, ROWS):
            yield np.full((min(ROWS, rows - start), self.num_neighbours), -1, np.int32)


def _check_end(last: NDArray[Any], end_id: int, uri: str) -> None:
    """BadInputError unless each of the last chunks of documents holds ``end_id``."""
    if not (last == end_id).any(axis=1).all():
        raise BadInputError(
            f"a document of {uri} does not end with token {end_id}, which others end with",
            "RETRO-pytorch needs an end token: use a tokenizer that appends one, or export another format",
        )


def _write(blocks: Callable[[], Iterator[NDArray[Any]]], target: str) -> Written:
    with store.create(target) as writer:
        for block in blocks():
            writer.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        return writer.close()


def _write_about(about: dict[str, Any], writer: _MemoryMaps, target: str) -> Written:
    sequences = {split: sum(len(block) for block in writer.sequences(split)) for split in writer.splits}
    found = {**about, "num_neighbors": writer.num_neighbours, "num_sequences": sequences}
    return store.write(target, (json.dumps(found, indent=1) + "\n").encode())
