"""Signatures of documents: made of batches of lines, stored number by number, read as they are compared."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.corpus import json_lines
from retro_ops.corpus.batches import Batch
from retro_ops.duplicates import minhash
from retro_ops.storage import read_ahead
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyReader, NpyWriter, open_npy

COPY_ROWS = 16_384


@dataclass(frozen=True)
class Signed:
    """The good documents of a batch of ``lines``. ``places``: the line of each in the batch, int64 ``[docs]``;
    ``contents`` uint64 ``[docs]``; ``signatures`` uint32 ``[docs, PERMUTATIONS]``."""

    source: str
    lines: int
    places: NDArray[np.int64]
    contents: NDArray[np.uint64]
    signatures: NDArray[np.uint32]


def signer(line_bytes: int) -> Callable[[Batch], Signed]:
    """The function that signs batches. Bad records are passed over: `tokenize-and-chunk` sets them aside."""

    def sign(batch: Batch) -> Signed:
        places, texts = [], []
        for place, (number, line) in enumerate(zip(batch.numbers, batch.lines, strict=True)):
            record = json_lines.parse(line, batch.source, number, line_bytes)
            if isinstance(record, json_lines.Document):
                places.append(place)
                texts.append(record.text)
        contents, signatures = minhash.content_hashes(texts), minhash.signatures(texts)
        return Signed(batch.source, len(batch.lines), np.array(places, np.int64), contents, signatures)

    return sign


class SignatureWriter:
    """The files of a shard. Signatures come document by document and are stored number by number, as they are compared;
    until all are there they lie in a scratch file. Use as a context manager."""

    def __init__(self, files: Mapping[str, str], budget: int) -> None:
        self._files, self._budget = files, budget
        self._scratch = tempfile.TemporaryFile(prefix="retro-ops-")  # noqa: SIM115 - closed on exit
        self._arrays = {
            "contents": NpyWriter(files["contents"], np.uint64),
            "records": NpyWriter(files["records"], np.int64),
        }
        self.documents = self.records = 0

    def append(self, signed: Signed) -> None:
        self._scratch.write(np.ascontiguousarray(signed.signatures).data)
        self._arrays["contents"].append(signed.contents)
        self._arrays["records"].append(signed.places + self.records)
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
    """The signatures of shards, whose documents are numbered through in their order. ``offsets`` int64
    ``[shards + 1]``."""

    def __init__(self, files: Sequence[Mapping[str, str]]) -> None:
        self._signatures = [open_npy(of["signatures"], ndim=2, kind="u") for of in files]
        self._contents = [open_npy(of["contents"], ndim=1, kind="u") for of in files]
        self._records = [open_npy(of["records"], ndim=1, kind="i") for of in files]
        self.offsets = np.concatenate(([0], np.cumsum([len(reader) for reader in self._contents]))).astype(np.int64)
        self.total = int(self.offsets[-1])
        self.largest = max(map(len, self._contents), default=0)

    def contents(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """(number of the first, hashes) of blocks of documents, in order."""
        for offset, reader in zip(self.offsets[:-1].tolist(), self._contents, strict=True):
            for first, block in reader.blocks(COPY_ROWS * 16):
                yield offset + first, block

    def numbers(self, first: int, end: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """(number of its first document, numbers ``first:end`` of the signatures ``[end - first, docs]``) of each
        shard."""
        yield from zip(
            self.offsets[:-1].tolist(),
            read_ahead.ahead(partial(reader.rows, first, end) for reader in self._signatures),
            strict=True,
        )

    def numbers_of(self, documents: NDArray[np.int64], first: int, end: int) -> NDArray[np.uint32]:
        """Likewise of some ``documents`` (ascending), ``[end - first, documents]``."""
        found = np.empty((end - first, len(documents)), np.uint32)
        bounds = np.searchsorted(documents, self.offsets)
        asked = [at for at in range(len(self._signatures)) if bounds[at] < bounds[at + 1]]
        blocks = read_ahead.ahead(partial(self._signatures[at].rows, first, end) for at in asked)
        for at, block in zip(asked, blocks, strict=True):
            of = slice(bounds[at], bounds[at + 1])
            found[:, of] = block[:, documents[of] - self.offsets[at]]
        return found

    def shard_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.offsets, documents, side="right") - 1

    def contents_of(self, documents: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Of ``documents`` (ascending)."""
        return self._of(self._contents, documents, np.dtype(np.uint64))

    def records_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of ``documents`` (ascending) among all lines of their shard."""
        return self._of(self._records, documents, np.dtype(np.int64))

    def _of(self, readers: Sequence[NpyReader], documents: NDArray[np.int64], dtype: "np.dtype[np.generic]") -> NDArray:  # type: ignore[type-arg]
        found = np.empty(len(documents), dtype)
        bounds = np.searchsorted(documents, self.offsets)
        for at, reader in enumerate(readers):
            of = slice(bounds[at], bounds[at + 1])
            if bounds[at] < bounds[at + 1]:
                found[of] = reader.rows(0, len(reader))[documents[of] - self.offsets[at]]
        return found
