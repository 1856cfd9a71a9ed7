"""Writes the output files of a tokenised shard side by side."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro_ops.corpus import json_lines
from retro_ops.execution.checkpoints import Part
from retro_ops.plan import paths
from retro_ops.plan.plan import Source
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyWriter


@dataclass(frozen=True)
class Job:
    sources: tuple[str, ...]
    chunks: str
    seq2chunk: str
    chunk2seq: str
    documents: str
    quarantine: str
    report: str
    digest: str
    line_bytes: int
    planned: tuple[Source, ...] = ()
    """The sources as they were planned, on whose content the digest depends."""
    without: Source | None = None
    """File with the numbers of the duplicates that are left out."""
    contaminated: Source | None = None
    """File with the numbers of the records that are left out because they hold benchmark texts."""


class Outputs:
    """The files of a shard, filled part by part. The quarantine file is made for the first bad record."""

    def __init__(self, stack: contextlib.ExitStack, job: Job, dtype: np.dtype[Any], chunk_size: int) -> None:

        self.documents = self.chunks = self.bad_records = self.blank_lines = 0
        self.first_bad: json_lines.BadRecord | None = None
        self._stack = stack
        self._arrays = {
            "chunks": stack.enter_context(NpyWriter(job.chunks, dtype, (chunk_size,))),
            "seq2chunk": stack.enter_context(NpyWriter(job.seq2chunk, "int64")),
            "chunk2seq": stack.enter_context(NpyWriter(job.chunk2seq, "int32")),
            "document_ids": stack.enter_context(NpyWriter(paths.document_ids_uri(job.chunks), "uint64")),
        }
        self._sidecar = self._lines_at(job.documents)
        self._quarantine: json_lines.JsonLinesWriter | None = None
        self._quarantine_uri = job.quarantine

    def append(self, part: Part) -> None:
        for name, writer in self._arrays.items():
            writer.append(part[name])
        self._sidecar.append(part["documents"].tobytes())
        bad = part["quarantine"].tobytes()
        if bad:
            self._quarantine = self._quarantine or self._lines_at(self._quarantine_uri)
            self._quarantine.append(bad)
            self.first_bad = self.first_bad or json_lines.first_of(bad)
        self.documents += len(part["seq2chunk"])
        self.chunks += len(part["chunks"])
        self.bad_records += bad.count(b"\n")

    def check_first(self, limit: float) -> None:
        """Raise BadInputError if a great number of records is bad before the first document."""
        if self.bad_records >= json_lines.MOST_BAD_AT_FIRST and not self.documents:
            self.check_share(limit)

    @property
    def lines(self) -> int:
        """Lines of the sources that the outputs cover, without those that were left out."""
        return self.documents + self.bad_records + self.blank_lines

    def check_share(self, limit: float) -> None:
        if refused := json_lines.too_many_bad(
            self.bad_records, self.documents, limit, self._quarantine_uri, self.first_bad
        ):
            self._close_quarantine()
            raise refused

    def close(self) -> list[Written]:
        return [*(a.close() for a in self._arrays.values()), self._sidecar.close(), *self._close_quarantine()]

    def _close_quarantine(self) -> list[Written]:
        return [self._quarantine.close()] if self._quarantine else []

    def _lines_at(self, uri: str) -> json_lines.JsonLinesWriter:
        return json_lines.JsonLinesWriter(self._stack.enter_context(store.create(uri)), uri)
