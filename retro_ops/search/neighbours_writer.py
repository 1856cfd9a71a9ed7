"""Writes the neighbours of a query shard, and resumes them from checkpoints."""

from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from retro_ops.execution.checkpoints import Checkpoints, Part
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
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

    def search_rows(self, start: int, stop: int) -> Part:
        """``neighbours`` int64 (ids) and ``distances`` float32 of rows ``start:stop``, both ``[stop - start, k]``.

        Where more is kept, also ``kept_neighbours`` and ``kept_distances``, ``[stop - start, keep_neighbours]``."""

    def tally(self) -> dict[str, Any]:
        """Counts over all batches so far, as JSON whose numbers add up."""


def write_neighbours(
    job: Job, parameters: Parameters, search: Search, unfinished: Checkpoints, block_rows: int
) -> tuple[dict[str, int], list[Written], dict[str, Any]]:
    """Counts, the files that were written, and the tally and figures of all rows, those of checkpoints included."""
    total, figures = len(open_npy(job.embeddings)), RowFigures()
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(NpyWriter(uri, dtype, (width,), rows=total))
            for name, (uri, dtype, width) in _arrays(job, parameters).items()
        }

        def append(part: Part) -> None:
            for name, writer in writers.items():
                writer.append(part[name])
            figures.add(part["neighbours"], part["distances"])

        for part in unfinished.parts():
            append(part)
        first, before = unfinished.end, unfinished.state
        progress = Progress("retrieve-neighbours", total, "chunks", first)
        for start in range(first, total, block_rows):
            end = min(start + block_rows, total)
            part = search.search_rows(start, end)
            append(part)
            progress.advance(end - start)
            unfinished.add(part, end)
            # Only at the end of a batch, because the tally covers all of it.
            if (end - first) % search.batch_rows == 0:
                unfinished.commit_when_due(_sum(before, search.tally()))
        progress.close()
        written = [writer.close() for writer in writers.values()]
    tally = {**_sum(before, search.tally()), "distances": figures.histograms()}
    return figures.counts(), written, tally


def _arrays(job: Job, parameters: Parameters) -> dict[str, tuple[str, DTypeLike, int]]:
    """URI, dtype and width of the arrays to write, by their names in a ``Part``."""
    found: dict[str, tuple[str, DTypeLike, int]] = {}
    for prefix, uri, width in (
        ("", job.neighbours, parameters.num_neighbours),
        ("kept_", job.kept, parameters.keep_neighbours),
    ):
        if uri and width:
            found[f"{prefix}neighbours"] = uri, np.int64, width
            found[f"{prefix}distances"] = paths.distances_uri(uri), np.float32, width
    return found


def _sum(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Two tallies as one: numbers are added, lists joined."""
    if not before:
        return now
    return {
        name: _sum(before[name], value) if isinstance(value, dict) else before[name] + value
        for name, value in now.items()
    }
