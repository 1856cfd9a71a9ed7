"""Searches an IVF index that is larger than its memory limit: lists are read and searched part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.index import faiss_index
from retro_ops.index.ivf_file import ListFile
from retro_ops.search.faiss_search import Coarse

HIT_BYTES = 64
PROBE_BYTES = 32
NUMBER_BYTES = 8
"""Memory of a query: of each hit, of each list that it probes, and of each number of its vector, copies included."""


def in_parts(files: Sequence[ListFile], memory_limit: int) -> Coarse:
    """A search of ``files`` as of one index. Ids follow on from one file to the next.

    ``memory_limit``: bytes that the search may take, beside the trained part. For as many queries at a time as fit:

    1. The quantizer says which lists each query probes, and how far they are.
    2. Of each file the lists that any of these queries probes are read, some at a time.
    3. faiss searches them, and the hits are merged with those so far, by (distance, id).

    So the probed lists are read once for each batch of queries, not for each query.
    """
    index = files[0].empty()
    first_ids = np.cumsum([0, *(file.total for file in files)])[:-1].tolist()
    at_once = memory.lists_at_once(memory_limit)

    def search(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # faiss frees these with ``index``, so it is the index that the search holds on to.
        inner: Any = faiss_index.inner_index(index)
        project = faiss_index.projection(index)
        distances = np.full((len(queries), width), np.inf, np.float32)
        ids = np.full((len(queries), width), -1, np.int64)
        query_bytes = HIT_BYTES * width + PROBE_BYTES * nprobe + NUMBER_BYTES * queries.shape[1]
        step = max(1, memory.queries_at_once(memory_limit) // query_bytes)
        inner.nprobe = min(nprobe, inner.nlist)
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            vectors = np.ascontiguousarray(project(queries[rows]), np.float32)
            list_distances, probed = inner.quantizer.search(vectors, inner.nprobe)
            batch = _Batch(inner, vectors, probed, list_distances, distances[rows], ids[rows])
            wanted = np.unique(probed[probed >= 0])
            for file, first_id in zip(files, first_ids, strict=True):
                for first, end in file.runs(wanted[file.sizes[wanted] > 0], at_once):
                    batch.search_lists(file, first, end, first_id)
        return distances, ids

    return search


@dataclass(frozen=True)
class _Batch:
    """Some queries and their nearest hits so far.

    ``vectors`` float32 ``[m, e]``, transformed; ``probed`` int64 and ``list_distances`` float32 ``[m, nprobe]``: the
    lists of each query; ``distances`` float32 and ``ids`` int64 ``[m, width]``, nearest first, which are written to.
    """

    inner: Any
    """The IVF index behind the transforms, without vectors."""
    vectors: NDArray[np.float32]
    probed: NDArray[np.int64]
    list_distances: NDArray[np.float32]
    distances: NDArray[np.float32]
    ids: NDArray[np.int64]

    def search_lists(self, file: ListFile, first: int, end: int, first_id: int) -> None:
        """Add the hits in lists ``first:end`` of ``file``, whose vectors are numbered from ``first_id``."""
        mine = (self.probed >= first) & (self.probed < end)
        rows = np.flatnonzero(mine.any(axis=1))
        lists = _read_lists(file, first, end)
        self.inner.replace_invlists(lists, False)
        self.inner.ntotal = int(file.sizes[first:end].sum())
        # faiss skips -1, so each query visits only those of its lists that were read.
        probed = np.where(mine, self.probed, -1)[rows]
        width = self.ids.shape[1]
        distances, ids = self.inner.search_preassigned(self.vectors[rows], width, probed, self.list_distances[rows])
        # Python owns the lists: the index must let go of them before they are freed.
        self.inner.replace_invlists(None, False)
        self._merge(rows, distances, np.where(ids < 0, ids, ids + first_id))

    def _merge(self, rows: NDArray[np.int64], distances: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        """Keep the nearest of the hits so far and of new ones, both ``[rows, width]``."""
        both_distances = np.concatenate((self.distances[rows], distances), axis=1)
        both_ids = np.concatenate((self.ids[rows], ids), axis=1)
        # Where there is no hit, faiss gives some large distance. Infinity sorts last.
        both_distances[both_ids < 0] = np.inf
        order = np.lexsort((both_ids, both_distances), axis=1)[:, : self.ids.shape[1]]
        self.distances[rows] = np.take_along_axis(both_distances, order, axis=1)
        self.ids[rows] = np.take_along_axis(both_ids, order, axis=1)


def _read_lists(file: ListFile, first: int, end: int) -> Any:
    """Lists ``first:end`` of ``file`` as faiss holds them, all others empty. faiss copies codes and ids."""
    held = faiss.ArrayInvertedLists(len(file.sizes), file.code_size)
    block = file.lists(first, end)
    for number in range(first, end):
        if file.sizes[number]:
            codes, ids = file.split(block, first, number)
            own_codes, own_ids = np.frombuffer(codes, np.uint8), np.ascontiguousarray(ids)
            held.add_entries(number, len(own_ids), faiss.swig_ptr(own_ids), faiss.swig_ptr(own_codes))
    return held
