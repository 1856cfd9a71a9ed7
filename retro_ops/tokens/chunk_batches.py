"""Turns batches of corpus lines into chunks, sidecar lines and bad records; runs in worker processes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.corpus import json_lines
from retro_ops.corpus.batches import Batch
from retro_ops.execution.checkpoints import Part
from retro_ops.tokens.chunking import Chunked, chunk_documents
from retro_ops.tokens.encoders import Encoding, exact, fastest


@dataclass(frozen=True)
class Settings:
    """Settings of the conversion. ``fast``: a faster package may encode, if it proves equal to tokenizers."""

    encoding: Encoding
    fast: bool
    chunk_size: int
    pad_id: int
    dtype: str
    on_bad_record: str
    line_bytes: int
    text_field: str


@dataclass(frozen=True)
class Piece:
    """The contribution of a batch to each output, numbered from 0."""

    chunked: Chunked
    sidecar: list[bytes]
    """A line for each document."""
    quarantine: list[bytes]
    """A line for each bad record."""
    bad_before: NDArray[np.int64]
    """``[docs]``: bad records before each document."""
    blank_before: NDArray[np.int64]
    """``[docs + 1]``: blank lines before each document, and in all."""
    package: str
    """Package that encoded the documents."""

    @property
    def blank_lines(self) -> int:
        return int(self.blank_before[-1])

    def fitting(self, most_chunks: int) -> int:
        """Number of documents, from the first on, that together have at most ``most_chunks`` chunks."""
        ends = np.append(self.chunked.seq2chunk[1:], len(self.chunked.chunks))[: len(self.sidecar)]
        return int((ends <= most_chunks).sum())

    def cut(self, documents: int) -> "Piece":
        """The first ``documents`` (fewer than there are), and the bad records before the next document."""
        of = self.chunked
        end = int(of.seq2chunk[documents])
        kept = Chunked(of.chunks[:end], of.seq2chunk[:documents], of.chunk2seq[:end], of.document_ids[:end])
        bad = self.quarantine[: self.bad_before[documents]]
        blank = self.blank_before[: documents + 1]
        return replace(self, chunked=kept, sidecar=self.sidecar[:documents], quarantine=bad, blank_before=blank)

    def part(self, first_document: int, first_chunk: int) -> Part:
        """Arrays for the outputs, numbered from ``first_document`` and ``first_chunk``; lines as bytes (uint8)."""
        return {
            "chunks": self.chunked.chunks,
            "seq2chunk": self.chunked.seq2chunk + first_chunk,
            "chunk2seq": self.chunked.chunk2seq + np.int32(first_document),
            "document_ids": self.chunked.document_ids,
            "documents": np.frombuffer(b"".join(self.sidecar), np.uint8),
            "quarantine": np.frombuffer(b"".join(self.quarantine), np.uint8),
        }


def maker(settings: Settings) -> Callable[[Batch], Piece]:
    """The function that turns a batch into a piece. BadInputError for a bad record, if these are to fail the stage."""
    if settings.fast:
        encode, package = fastest(settings.encoding)
    else:
        encode, package = exact(settings.encoding), "tokenizers"

    def make(batch: Batch) -> Piece:
        documents: list[json_lines.Document] = []
        bad: list[json_lines.BadRecord] = []
        bad_before: list[int] = []
        blank_before: list[int] = []
        blank = 0
        for number, line in zip(batch.numbers, batch.lines, strict=True):
            record = json_lines.parse(line, batch.source, number, settings.line_bytes, settings.text_field)
            if record is None:
                blank += 1
            elif isinstance(record, json_lines.Document):
                documents.append(record)
                bad_before.append(len(bad))
                blank_before.append(blank)
            elif settings.on_bad_record == "fail":
                raise json_lines.refusal(record)
            else:
                bad.append(replace(record, content=record.content[: json_lines.QUARANTINED_CHARACTERS]))
        rows = encode([document.text for document in documents])
        chunked = chunk_documents(rows, settings.chunk_size, settings.pad_id, np.dtype(settings.dtype))
        return Piece(
            chunked,
            [json_lines.json_line(_about(document)) for document in documents],
            [json_lines.json_line(asdict(record)) for record in bad],
            np.array(bad_before, np.int64),
            np.array([*blank_before, blank], np.int64),
            package,
        )

    return make


def _about(document: json_lines.Document) -> dict[str, Any]:
    return {"source": document.source, "line": document.line, "record": document.extra}
