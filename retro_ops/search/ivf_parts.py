"""Candidates from an IVF index larger than memory: its lists are read and searched part by part."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops.index import faiss_index
from retro_ops.index.ivf_file import ListFile
from retro_ops.search.faiss_search import Coarse


def in_parts(files: Sequence[ListFile], room: int) -> Coarse:
    """Search of ``files``, whose ids follow one another, as of one index; ``room``: bytes that this may take beside
    what was trained.

    Of each file the lists that any query probes are read in turn, and what they give is merged by (distance, id). So an
    index is read once for as many queries as fit.
    """
    index = files[0].empty()
    shifts = np.cumsum([0, *(file.total for file in files)])[:-1].tolist()

    def coarse(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        inner: Any = faiss_index.inner_index(index)
        project = faiss_index.projection(index)
        distances = np.full((len(queries), width), np.inf, np.float32)
        ids = np.full((len(queries), width), -1, np.int64)
        step = max(1, room // 3 // (64 * width + 32 * nprobe + 8 * queries.shape[1]))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            vectors = np.ascontiguousarray(project(queries[rows]), np.float32)
            inner.nprobe = min(nprobe, inner.nlist)
            probed_distances, probed = inner.quantizer.search(vectors, inner.nprobe)
            nearest = distances[rows], ids[rows]
            for file, shift in zip(files, shifts, strict=True):
                wanted = np.unique(probed)
                wanted = wanted[wanted >= 0]
                for first, end in file.runs(wanted[file.sizes[wanted] > 0], room // 3):
                    _search_lists(inner, file, (first, end), vectors, probed, probed_distances, nearest, shift)
        return distances, ids

    return coarse


def _search_lists(
    inner: Any,
    file: ListFile,
    lists: tuple[int, int],
    vectors: NDArray[np.float32],
    probed: NDArray[np.int64],
    probed_distances: NDArray[np.float32],
    nearest: tuple[NDArray[np.float32], NDArray[np.int64]],
    shift: int,
) -> None:
    """Merge what ``lists`` (first, end) hold into ``nearest``, (distances, ids), for the queries that probe them."""
    first, end = lists
    mine = (probed >= first) & (probed < end)
    rows = np.flatnonzero(mine.any(axis=1))
    held = faiss.ArrayInvertedLists(inner.nlist, file.code_size)
    block = file.lists(first, end)
    for number in range(first, end):
        if file.sizes[number]:
            codes, ids = file.split(block, first, number)
            of = np.frombuffer(codes, np.uint8)
            own = np.ascontiguousarray(ids)
            held.add_entries(number, len(own), faiss.swig_ptr(own), faiss.swig_ptr(of))
    inner.replace_invlists(held, False)
    inner.ntotal = int(file.sizes[first:end].sum())
    width = nearest[0].shape[1]
    keys = np.where(mine, probed, -1)[rows]
    found, where = inner.search_preassigned(vectors[rows], width, keys, probed_distances[rows])
    # Whoever gave it up frees it.
    inner.replace_invlists(None, False)
    where = np.where(where < 0, where, where + shift)
    both = np.concatenate((nearest[0][rows], found), axis=1), np.concatenate((nearest[1][rows], where), axis=1)
    # What was not found comes last, whatever faiss says of its distance.
    both[0][both[1] < 0] = np.inf
    order = np.lexsort((both[1], both[0]), axis=1)[:, :width]
    nearest[0][rows] = np.take_along_axis(both[0], order, axis=1)
    nearest[1][rows] = np.take_along_axis(both[1], order, axis=1)
