"""Makes, stores and reads the signatures of documents.

Signatures are stored transposed, ``[PERMUTATIONS, documents]``, because they are compared row by row.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.corpus import json_lines
from retro_ops.corpus.batches import Batch
from retro_ops.duplicates import minhash
from retro_ops.storage import read_ahead
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyReader, NpyWriter, open_npy

if TYPE_CHECKING:
    from retro_ops.duplicates.contamination import Benchmarks

COPY_ROWS = 16_384


@dataclass(frozen=True)
class Signed:
    """The signatures of the valid documents of a batch."""

    source: str
    lines: int
    """Lines of the batch, bad records included."""
    places: NDArray[np.int64]
    """Position of each document among the lines, ``[docs]``."""
    contents: NDArray[np.uint64]
    """Hash of each text, ``[docs]``."""
    signatures: NDArray[np.uint32]
    """``[docs, PERMUTATIONS]``"""
    overlaps: NDArray[np.int64]
    """``[pairs, 3]``: position of a document among the lines, and file and line of a benchmark text."""


def signer(
    line_bytes: int, text_field: str, read_benchmarks: Callable[[], "Benchmarks"] | None
) -> Callable[[Batch], Signed]:
    """A function that signs a batch. It skips bad records, which `tokenize-and-chunk` sets aside.

    ``read_benchmarks``: None where documents are not compared with benchmark texts.
    """
    benchmarks = read_benchmarks() if read_benchmarks else None

    def sign(batch: Batch) -> Signed:
        places, texts = [], []
        for place, (number, line) in enumerate(zip(batch.numbers, batch.lines, strict=True)):
            record = json_lines.parse(line, batch.source, number, line_bytes, text_field)
            if isinstance(record, json_lines.Document):
                places.append(place)
                texts.append(record.text)
        contents, signatures = minhash.content_hashes(texts), minhash.signatures(texts)
        of_lines, overlaps = np.array(places, np.int64), np.zeros((0, 3), np.int64)
        if benchmarks:
            overlaps = benchmarks.overlaps(texts)
            overlaps[:, 0] = of_lines[overlaps[:, 0]]
        return Signed(batch.source, len(batch.lines), of_lines, contents, signatures, overlaps)

    return sign


class SignatureWriter:
    """Writes the signature files of a shard. Use as a context manager.

    Signatures arrive document by document and are stored transposed, so they wait in a scratch file until ``close``.
    """

    def __init__(self, files: Mapping[str, str], overlaps: str | None, budget: int) -> None:
        """``overlaps``: file for what documents share with benchmark texts; None where they are not compared."""
        self._files, self._budget = files, budget
        self._scratch = tempfile.TemporaryFile(prefix="retro-ops-")  # noqa: SIM115 - closed on exit
        self._arrays = {
            "contents": NpyWriter(files["contents"], np.uint64),
            "records": NpyWriter(files["records"], np.int64),
            **({"overlaps": NpyWriter(overlaps, np.int64, (3,))} if overlaps else {}),
        }
        self.documents = self.records = 0

    def append(self, signed: Signed) -> None:
        self._scratch.write(np.ascontiguousarray(signed.signatures).data)
        self._arrays["contents"].append(signed.contents)
        self._arrays["records"].append(signed.places + self.records)
        if "overlaps" in self._arrays:
            self._arrays["overlaps"].append(signed.overlaps + np.array([self.records, 0, 0]))
        self.documents += len(signed.places)
        self.records += signed.lines

    def close(self) -> list[Written]:
        with NpyWriter(self._files["signatures"], np.uint32, (self.documents,), rows=minhash.PERMUTATIONS) as writer:
            at_once = max(
                1, min(minhash.PERMUTATIONS, memory.transposed_signatures(self._budget) // max(1, 4 * self.documents))
            )
            for first in range(0, minhash.PERMUTATIONS, at_once):
                writer.append(self._columns(first, min(first + at_once, minhash.PERMUTATIONS)))
            return [writer.close(), *(array.close() for array in self._arrays.values())]

    def _columns(self, first: int, end: int) -> NDArray[np.uint32]:
        columns = np.empty((end - first, self.documents), np.uint32)
        self._scratch.seek(0)
        for start in range(0, self.documents, COPY_ROWS):
            data = self._scratch.read(COPY_ROWS * minhash.PERMUTATIONS * 4)
            rows = np.frombuffer(data, np.uint32).reshape(-1, minhash.PERMUTATIONS)
            columns[:, start : start + len(rows)] = rows[:, first:end].T
        return columns

    def __enter__(self) -> "SignatureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.close()
        for array in self._arrays.values():
            array.__exit__(kind, error, trace)


class SignedShards:
    """The stored signatures of several shards, with documents numbered consecutively.

    ``offsets``: int64 ``[shards + 1]``, number of the first document of each shard.
    """

    def __init__(self, files: Sequence[Mapping[str, str]]) -> None:
        self._signatures = [open_npy(shard["signatures"], ndim=2, kind="u") for shard in files]
        self._contents = [open_npy(shard["contents"], ndim=1, kind="u") for shard in files]
        self._records = [open_npy(shard["records"], ndim=1, kind="i") for shard in files]
        self.offsets = np.concatenate(([0], np.cumsum([len(reader) for reader in self._contents]))).astype(np.int64)
        self.total = int(self.offsets[-1])
        self.largest = max(map(len, self._contents), default=0)

    def contents(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """(number of the first document, content hashes) of each block of documents, in order."""
        for offset, reader in zip(self.offsets[:-1].tolist(), self._contents, strict=True):
            for first, block in reader.blocks(COPY_ROWS * 16):
                yield offset + first, block

    def numbers(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """(number of the first document, signature rows ``first:end``, ``[end - first, docs]``) of each shard."""
        yield from zip(
            self.offsets[:-1].tolist(),
            read_ahead.ahead(self._read(at, first, end) for at in range(len(self._signatures))),
            strict=True,
        )

    def numbers_of(self, documents: NDArray[np.int64], first: int, end: int) -> NDArray[np.uint32]:
        """Rows ``first:end`` of the signatures of ``documents`` (ascending), ``[end - first, documents]``."""
        rows = np.empty((end - first, len(documents)), np.uint32)
        bounds = np.searchsorted(documents, self.offsets)
        shards = [at for at in range(len(self._signatures)) if bounds[at] < bounds[at + 1]]
        blocks = read_ahead.ahead(self._read(at, first, end) for at in shards)
        for at, block in zip(shards, blocks, strict=True):
            part = slice(bounds[at], bounds[at + 1])
            rows[:, part] = block[:, documents[part] - self.offsets[at]]
        return rows

    def _read(self, shard: int, first: int, end: int) -> read_ahead.Read[NDArray[np.uint32]]:
        reader = self._signatures[shard]
        return (end - first) * reader.row_bytes, partial(reader.rows, first, end)

    def shard_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of the shard of each document, ``[documents]``."""
        return np.searchsorted(self.offsets, documents, side="right") - 1

    def contents_of(self, documents: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Content hashes of ``documents`` (ascending)."""
        return self._select(self._contents, documents, np.dtype(np.uint64))

    def records_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position of ``documents`` (ascending) among all lines of their shard."""
        return self._select(self._records, documents, np.dtype(np.int64))

    def documents_of(self, shard: int, records: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the documents that are the ``records`` (ascending) of the shard at position ``shard``."""
        reader = self._records[shard]
        offset = int(self.offsets[shard])
        return np.searchsorted(reader.rows(0, len(reader)), records) + offset

    def _select(
        self, readers: Sequence[NpyReader], documents: NDArray[np.int64], dtype: np.dtype[np.generic]
    ) -> NDArray:  # type: ignore[type-arg]
        values = np.empty(len(documents), dtype)
        bounds = np.searchsorted(documents, self.offsets)
        for at, reader in enumerate(readers):
            part = slice(bounds[at], bounds[at + 1])
            if bounds[at] < bounds[at + 1]:
                values[part] = reader.rows(0, len(reader))[documents[part] - self.offsets[at]]
        return values
