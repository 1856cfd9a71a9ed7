"""The search of the original scripts (profile `seed`): one faiss search, hits of the same document dropped.

Neighbours keep the order and the distances that the index gives, and a row that lost too many hits stays short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.execution.checkpoints import Part
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import memory_limit, open_if_larger_than
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.search import faiss_search
from retro_ops.search.ivf_parts import in_parts
from retro_ops.search.jobs import Job
from retro_ops.search.queries import open_arrays
from retro_ops.storage import read_ahead
from retro_ops.storage.npy import NpyReader, open_npy

Search = Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries float32 ``[m, d]``, width, nprobe) -> (distances float32, ids int64), both ``[m, width]``.

Nearest first; -1 where fewer than ``width`` were found.
"""

NO_NEIGHBOUR = -1

DEFAULT_MARGIN = 4
"""Hits beyond ``k`` that replace those of the same document."""

DOCUMENT_ROWS = 4096
"""Rows of chunk2seq read at a time, to find where the document of a query begins and ends."""


@dataclass(frozen=True)
class Found:
    """``ids`` int64 ``[m, k]``, -1 last; ``distances`` float32 ``[m, k]``, +inf at -1."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


class SeedIndex:
    """The index of a job, loaded. Jobs that search the same index share it."""

    def __init__(self, job: Job, parameters: Parameters, device: Device) -> None:
        self.parameters, self.device = parameters, device
        self.counts = read_ahead.side_by_side(lambda shard: len(open_npy(shard.embeddings)), job.indexed)
        limit = memory_limit(parameters)
        if device.chosen == "cpu" and (parts := open_if_larger_than(limit, [job.index])):
            total, self.search = parts[0].total, in_parts(parts, limit.bytes)
        else:
            index = load_index(job.index)
            total = int(index.ntotal)
            self.search = faiss_search.searcher(index, device, parameters.shard_index)
        if total != sum(self.counts):
            raise BadInputError(
                f"{job.index} holds {total:,} vectors, its index spec names {sum(self.counts):,}",
                "give the index spec that the index was filled from",
            )


class SeedRetriever:
    """Finds the neighbours of the query shard of ``job``. Attributes and methods are those of ``Retriever``."""

    def __init__(self, job: Job, index: SeedIndex, block_rows: int) -> None:
        self._index = index
        self._embeddings, self._chunk2seq = open_arrays(job, open_npy(job.indexed[0].embeddings))
        self._offset = None if job.position is None else sum(index.counts[: job.position])
        parameters, device = index.parameters, index.device
        self._k, self._nprobe = parameters.num_neighbours, parameters.nprobe or 1
        self._margin = DEFAULT_MARGIN if parameters.retrieval_margin is None else parameters.retrieval_margin
        self.batch_rows = block_rows
        self.details: dict[str, Any] = {"nprobe": self._nprobe, "retrieval_margin": self._margin}
        self.same_document = self._offset is not None
        say(
            f"retrieve-neighbours: seed profile, nprobe {self._nprobe}, retrieval_margin {self._margin}, "
            f"{device.chosen} ({device.why})"
        )

    def search_rows(self, start: int, stop: int) -> Part:
        first, end = own_documents(self._chunk2seq, start, stop, self._offset)
        queries = np.ascontiguousarray(self._embeddings.rows(start, stop), np.float32)
        found = seed_neighbours(self._index.search, queries, first, end, self._k, self._margin, self._nprobe)
        return {"neighbours": found.ids, "distances": found.distances}

    def tally(self) -> dict[str, Any]:
        return {}


def own_documents(
    chunk2seq: NpyReader, start: int, stop: int, offset: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Range of global ids ``first:end`` of the document of each row ``start:stop``: int64 ``[stop - start]`` each.

    ``offset``: global id of row 0. None for a shard that is not in the index, whose ranges are empty. Rows before and
    after are read until the documents at the edges are complete.
    """
    if offset is None:
        nothing = np.zeros(stop - start, np.int64)
        return nothing, nothing
    low, rows = start, chunk2seq.rows(start, stop)
    while low > 0 and rows[0] == rows[start - low]:
        before = chunk2seq.rows(max(0, low - DOCUMENT_ROWS), low)
        low, rows = low - len(before), np.concatenate((before, rows))
    high = stop
    while high < len(chunk2seq) and rows[-1] == rows[stop - 1 - low]:
        after = chunk2seq.rows(high, high + DOCUMENT_ROWS)
        high, rows = high + len(after), np.concatenate((rows, after))
    first, end = document_ranges(rows)
    own = slice(start - low, stop - low)
    return first[own] + (low + offset), end[own] + (low + offset)


def document_ranges(chunk2seq: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each chunk the first row of its document within ``chunk2seq``, and the row after its last.

    Chunks of a document are consecutive, so a same-document test is a range test.
    """
    boundaries = np.flatnonzero(np.diff(chunk2seq)) + 1
    starts = np.concatenate(([0], boundaries)).astype(np.int64)
    ends = np.concatenate((boundaries, [len(chunk2seq)])).astype(np.int64)
    lengths = ends - starts
    return np.repeat(starts, lengths)[: len(chunk2seq)], np.repeat(ends, lengths)[: len(chunk2seq)]


def keep_first(ids: NDArray[np.int64], distances: NDArray[np.float32], keep: NDArray[np.bool_], k: int) -> Found:
    """The first ``k`` hits of each row where ``keep`` holds, in their order, padded with -1."""
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(keep, order, axis=1)
    out_ids = np.where(kept, np.take_along_axis(ids, order, axis=1), NO_NEIGHBOUR)
    out_distances = np.where(kept, np.take_along_axis(distances, order, axis=1), np.inf)
    missing = k - order.shape[1]
    if missing > 0:
        out_ids = np.pad(out_ids, ((0, 0), (0, missing)), constant_values=NO_NEIGHBOUR)
        out_distances = np.pad(out_distances, ((0, 0), (0, missing)), constant_values=np.inf)
    return Found(out_ids, out_distances.astype(np.float32))


def other_document(ids: NDArray[np.int64], first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a hit exists and lies outside the row's own document, global ids ``first:end``."""
    kept: NDArray[np.bool_] = (ids != NO_NEIGHBOUR) & ((ids < first[:, None]) | (ids >= end[:, None]))
    return kept


def seed_neighbours(
    search: Search,
    queries: NDArray[np.float32],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    k: int,
    margin: int,
    nprobe: int,
) -> Found:
    """The ``k`` nearest of ``k + margin`` hits that lie outside the row's own document, global ids ``first:end``."""
    distances, ids = search(queries, k + margin, nprobe)
    return keep_first(ids, distances, other_document(ids, first, end), k)
