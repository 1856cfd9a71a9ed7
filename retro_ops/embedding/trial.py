"""Tries a backend before it is used: on a small sample, then in batches that grow within a stated share of memory."""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.embedding.backends import Backend
from retro_ops.tokens.packing import Rows

LEAST_TOKENS = 2048
GROWTH = 4
SHARE_OF_MEMORY = 0.5
"""Share of the free memory of host and GPU that a trial may take."""


def least_cosine(backend: Callable[[list[Any]], Iterable[Any]], sample: Any, wanted: NDArray[np.float32]) -> float:
    """Least cosine of the vectors of ``sample`` with ``wanted`` float32 ``[rows, d]``; -1 where one is NaN."""
    found = np.concatenate(list(backend([sample]))).astype(np.float32)
    return float(np.nan_to_num((found * wanted).sum(axis=1), nan=-1.0).min())


def fitting_tokens(make: Callable[[int], Backend], sample: Rows, least: int, most: int, chosen: str) -> int:
    """The largest number of ids in a batch, up to ``most``, for which a backend fits in memory.

    1. Run a batch of ``least`` ids and measure the memory that it takes on the host and on the GPU.
    2. Predict what a batch ``GROWTH`` times as large would take: from the growth in the last step, and at first as if
       memory grew with the square of the batch. Stop if it exceeds ``SHARE_OF_MEMORY`` of the free memory.
    3. Run it, and go on from 2. A batch for which the memory does not suffice ends the search, too.
    """
    if least >= most:
        return most
    tokens, power = least, 2.0
    used = _share_used(lambda: _run(make(least), sample, least), chosen)
    while tokens < most:
        larger = min(tokens * GROWTH, most)
        if used * (larger / tokens) ** power > 1:
            break
        try:
            needed = _share_used(lambda size=larger: _run(make(size), sample, size), chosen)  # type: ignore[misc]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if used > 1e-3:  # Less is noise.
            power = float(np.clip(np.log(max(needed, used) / used) / np.log(larger / tokens), 1, 3))
        tokens, used = larger, needed
    return tokens


def _run(backend: Backend, sample: Rows, tokens: int) -> None:
    """Embeds about ``tokens`` ids: the rows of ``sample``, repeated."""
    times = max(1, tokens // len(sample.ids))
    for _ in backend([Rows(np.tile(sample.ids, times), np.tile(sample.lengths, times))]):
        pass


def _share_used(run: Callable[[], None], chosen: str) -> float:
    """Peak memory of ``run`` as a fraction of its limit, on host or GPU, whichever is larger."""
    free = _free_on_host()
    before = _reset_peak()
    on_gpu = 0.0
    if chosen == "cuda":
        import torch

        torch.cuda.empty_cache()
        allowed = torch.cuda.mem_get_info()[0] * SHARE_OF_MEMORY
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        on_gpu = (torch.cuda.max_memory_allocated() - held) / allowed
    else:
        run()
    return max(on_gpu, (_status("VmHWM") - before) / (free * SHARE_OF_MEMORY))


def _reset_peak() -> int:
    """Starts to measure the peak of this process's memory; its size now. Where it cannot, earlier peaks count too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


def _free_on_host() -> int:
    """Memory that can be had, in bytes: of the machine, or of the container if it is limited to less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        limit, now = (int(Path("/sys/fs/cgroup", name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - now)
    return max(free, os.sysconf("SC_PAGE_SIZE"))


def is_out_of_memory(error: Exception) -> bool:
    """Of the GPU, or of torch's allocator on the CPU, which raises a plain RuntimeError."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "allocate memory" in str(error)
