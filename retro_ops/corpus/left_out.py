"""Skips the records of a shard that are left out as duplicates."""

from collections.abc import Iterator

import numpy as np

from retro_ops.corpus import line_streams
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Source
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy


class LeftOut:
    """The records that a shard leaves out. Raises BadInputError if the file that lists them is not as planned."""

    def __init__(self, source: Source | None) -> None:

        self._any = source is not None
        self._records = np.zeros(0, np.int64)
        if source is not None:
            if not store.exists(source.uri) or f"sha256:{store.sha256(source.uri)}" != source.fingerprint:
                raise BadInputError(
                    f"{source.uri} was removed or has changed since the run was planned", "start a new run"
                )
            reader = open_npy(source.uri, ndim=1, kind="i")
            self._records = reader.rows(0, len(reader))
        # Number of kept records before each record that is left out.
        self._kept_before = self._records - np.arange(len(self._records))

    def skip(self, lines: Iterator[line_streams.SourceLine], first: int) -> Iterator[line_streams.SourceLine]:
        """``lines`` without the records that are left out; the first line is record ``first``."""
        at = int(self._records.searchsorted(first))
        for record, line in enumerate(lines, first):
            if at < len(self._records) and self._records[at] == record:
                at += 1
            else:
                yield line

    def records(self, kept: int) -> int:
        """Records read, skipped ones included, to get the first ``kept`` that are kept."""
        return kept + int(self._kept_before.searchsorted(kept))

    def counts(self, kept: int, cut: bool) -> dict[str, int]:
        """Count of dropped duplicates for the report. ``cut``: whether the shard ends before its last record."""
        count = self.records(kept) - kept if cut else len(self._records)
        return {"duplicates_dropped": count} if self._any else {}
