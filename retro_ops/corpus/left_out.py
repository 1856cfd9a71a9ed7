"""Skips the records of a shard that are left out, as duplicates or because they hold benchmark texts."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retro_ops.corpus import line_streams
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Source
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy


class LeftOut:
    """The records that a shard leaves out. Raises BadInputError if a file that lists them is not as planned."""

    def __init__(self, duplicates: Source | None, contaminated: Source | None) -> None:
        named = {"duplicates_dropped": duplicates, "contaminated_dropped": contaminated}
        self._of_count = {name: _listed(source) for name, source in named.items() if source}
        self._records = np.unique(np.concatenate([np.zeros(0, np.int64), *self._of_count.values()]))
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
        """Counts of dropped documents for the report. ``cut``: whether the shard ends before its last record."""
        return {
            name: int(listed.searchsorted(self.records(kept))) if cut else len(listed)
            for name, listed in self._of_count.items()
        }


def _listed(source: Source) -> NDArray[np.int64]:
    """The numbers of the records in the file ``source``, ascending."""
    if not store.exists(source.uri) or f"sha256:{store.sha256(source.uri)}" != source.fingerprint:
        raise BadInputError(f"{source.uri} was removed or has changed since the run was planned", "start a new run")
    reader = open_npy(source.uri, ndim=1, kind="i")
    return reader.rows(0, len(reader))
