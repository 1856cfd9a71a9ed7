"""Adds vectors to a trained index, and merges partial indexes."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import cycle
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device, gpus
from retro_ops.compute.fp16_scores import on, prepare
from retro_ops.errors import BadInputError
from retro_ops.index import gpu_ivf
from retro_ops.index.faiss_index import faiss_message, inner_index, set_total, transforms_of
from retro_ops.index.training import linear, on_tensor_cores


def fill(index: Any, blocks: Iterable[NDArray[np.float16]], on_block: Callable[[int], None], device: Device) -> None:
    """Add float16 ``[n, d]`` blocks in order, so that ids follow the order of rows.

    ``on_block`` is called with the number of rows added.
    """
    if device.chosen == "cuda" and on_tensor_cores(index):
        prepare(device)
        fill_on(gpus(), index, blocks, on_block)
        return
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
        on_block(len(block))


def fill_on(
    devices: Sequence[str], index: Any, blocks: Iterable[NDArray[np.float16]], on_block: Callable[[int], None]
) -> None:
    """Add blocks whose codes torch computes on ``devices`` in turn, while faiss adds the codes of blocks before."""
    inner = inner_index(index)

    def add(codes: NDArray[np.uint8]) -> None:
        inner.add_sa_codes(codes)
        set_total(index, inner.ntotal)
        on_block(len(codes))

    coder_on = cache(partial(coder, index))
    computed: deque[Callable[[], NDArray[np.uint8]]] = deque()
    for block, device in zip(blocks, cycle(devices), strict=False):
        computed.append(gpu_ivf.to_host(coder_on(device).encode(on(device, block))))
        if len(computed) > len(devices):
            add(computed.popleft()())
    while computed:
        add(computed.popleft()())


def coder(index: Any, device: str) -> gpu_ivf.Coder:
    """A coder on ``device`` (torch's name) with the centroids, codebooks and transforms of ``index``."""
    inner, transforms = inner_index(index), transforms_of(index)
    centroids = on(device, inner.quantizer.reconstruct_n(0, inner.nlist)[None])
    codebooks = None
    if isinstance(inner, faiss.IndexIVFPQ):
        shape = (inner.pq.M, inner.pq.ksub, inner.pq.dsub)
        codebooks = on(device, faiss.vector_to_array(inner.pq.centroids).reshape(shape))
    return gpu_ivf.Coder(centroids, codebooks, linear(transforms, device) if transforms else None)


def merge(target: Any, part: Any, name: str) -> None:
    """Append ``part`` (called ``name`` in errors) to ``target``; its ids follow those of ``target``.

    ``part`` is empty afterwards. BadInputError if the two do not come from one trained index.
    """
    has_lists = isinstance(inner_index(target), faiss.IndexIVF)
    try:
        target.check_compatible_for_merge(part)
        target.merge_from(part, target.ntotal if has_lists else 0)
    except RuntimeError as error:
        raise BadInputError(
            f"{name} cannot be appended: {faiss_message(error)}", "build all partial indexes from one trained index"
        ) from error
