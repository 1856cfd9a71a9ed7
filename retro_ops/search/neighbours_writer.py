"""Writes the neighbours of a query shard, and resumes them from checkpoints."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retro_ops.execution.checkpoints import Checkpoints, Part
from retro_ops.plan import paths
from retro_ops.progress import Progress
from retro_ops.search.jobs import Job
from retro_ops.search.row_figures import RowFigures
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyWriter, open_npy


class Search(Protocol):
    """Search for the neighbours of a query shard, of either profile."""

    batch_rows: int
    """Rows that are searched together, and handed out a block at a time."""
    details: dict[str, Any]
    """Settings of the search, for the report."""
    same_document: bool
    """Whether hits of the row's own document are known, and dropped."""

    def search_rows(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 and distances float32 of the neighbours of rows ``start:stop``, both ``[stop - start, k]``."""

    def tally(self) -> dict[str, Any]:
        """Counts over all batches so far, as JSON whose numbers add up."""


def write_neighbours(
    job: Job, k: int, search: Search, unfinished: Checkpoints, block_rows: int
) -> tuple[dict[str, int], list[Written], dict[str, Any]]:
    """Counts, the files that were written, and the tally and figures of all rows, those of checkpoints included."""
    total, distances_uri = len(open_npy(job.embeddings)), paths.distances_uri(job.neighbours)
    figures = RowFigures()
    with (
        NpyWriter(job.neighbours, np.int64, (k,), rows=total) as neighbours_out,
        NpyWriter(distances_uri, np.float32, (k,), rows=total) as distances_out,
    ):

        def append(part: Part) -> None:
            neighbours_out.append(part["neighbours"])
            distances_out.append(part["distances"])
            figures.add(part["neighbours"], part["distances"])

        for part in unfinished.parts():
            append(part)
        first, before = unfinished.end, unfinished.state
        progress = Progress("retrieve-neighbours", total, "chunks", first)
        for start in range(first, total, block_rows):
            end = min(start + block_rows, total)
            ids, distances = search.search_rows(start, end)
            part = {"neighbours": ids, "distances": distances}
            append(part)
            progress.advance(len(ids))
            unfinished.add(part, end)
            # Only at the end of a batch, because the tally covers all of it.
            if (end - first) % search.batch_rows == 0:
                unfinished.commit_when_due(_sum(before, search.tally()))
        progress.close()
        written = [neighbours_out.close(), distances_out.close()]
    tally = {**_sum(before, search.tally()), "distances": figures.histograms()}
    return figures.counts(), written, tally


def _sum(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Two tallies as one: numbers are added, lists joined."""
    if not before:
        return now
    return {
        name: _sum(before[name], value) if isinstance(value, dict) else before[name] + value
        for name, value in now.items()
    }
