"""Candidates from a faiss index in memory."""

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.index.faiss_index import list_count

Coarse = Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries float32 ``[m, d]``, width, nprobe) -> (distances float32, ids int64), both ``[m, width]``, nearest first;
-1 where fewer than ``width`` were found."""


def searcher(index: Any, device: Device, shard_over_gpus: bool) -> Coarse:
    """Searches the codes of ``index`` on ``device``. ``shard_over_gpus``: each GPU holds a part of them, not a copy."""
    has_lists = list_count(index) > 1  # Of the index on the CPU: a GPU index has other classes.
    if device.chosen == "cuda":
        options = faiss.GpuMultipleClonerOptions()
        options.shard = shard_over_gpus
        index = faiss.index_cpu_to_all_gpus(index, co=options)
        space: Any = faiss.GpuParameterSpace()
    else:
        space = faiss.ParameterSpace()
    current_nprobe = 0

    def search(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        nonlocal current_nprobe
        if has_lists and current_nprobe != nprobe:
            space.set_index_parameter(index, "nprobe", nprobe)
            current_nprobe = nprobe
        distances, ids = index.search(np.ascontiguousarray(queries, np.float32), width)
        return distances, ids

    return search
