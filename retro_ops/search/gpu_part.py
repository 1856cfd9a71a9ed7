"""Vectors on one device, list by list, as ``gpu_nearest`` searches them.

A *slot* is the place of a vector; a *group* is GROUP slots that follow one another. A list begins with a new group, so
the last group of each list may have empty slots, and no group holds vectors of two lists.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, columns, on, vector_operand
from retro_ops.compute.workers import in_threads
from retro_ops.search.hits import Block, Blocks

GROUP = 16
"""Vectors of which only the best score is kept. A list is in the order of ids, so those of a document are together."""

OPERAND_ROWS = 2**17
"""Vectors that are completed to operands at a time: 400 MB of float64 at d = 384."""


@dataclass(frozen=True)
class Part:
    """Vectors on one device, list by list."""

    vectors: Tensor
    """Half ``[slots, c]``: right operands of scores, of which empty slots have minus infinity."""
    squares: Tensor
    """Float64 ``[slots]``: squared lengths."""
    ids: Tensor
    """Int64 ``[slots]``, -1 for empty slots."""
    documents: Tensor
    """Int64 ``[slots]``: identity of each vector's document."""
    first_groups: Tensor
    """Int64 ``[lists + 1]``: first group of each list, and the end."""
    largest: float
    """The greatest square."""

    def to(self, device: str) -> "Part":
        """A copy on another device; the same tensors on its own."""
        return Part(
            self.vectors.to(device),
            self.squares.to(device),
            self.ids.to(device),
            self.documents.to(device),
            self.first_groups.to(device),
            self.largest,
        )


def count_slots(of_vectors: NDArray[np.int32], lists: int) -> int:
    """Slots of a part whose vectors are in the lists ``of_vectors`` int32 ``[n]``."""
    counts = np.bincount(of_vectors, minlength=lists)
    return int((-(-counts // GROUP)).sum()) * GROUP


def load(of_vectors: NDArray[np.int32], ids: NDArray[np.int64], lists: int, blocks: Blocks, device: str) -> Part:
    """Reads the vectors ``ids`` int64 ``[n]`` (ascending), which are in the lists ``of_vectors`` int32 ``[n]``.

    1. Sort by list (stable, so a list stays in the order of ids): the slot of a vector is the first slot of its list
       plus its place in the list.
    2. Read block by block, and write each vector to its slot.
    3. Complete the operands with the squares; empty slots get minus infinity.
    """
    import torch

    first_groups, slots = _slots(on(device, of_vectors), lists)
    size = int(first_groups[-1]) * GROUP
    vectors: Tensor = None
    squares = torch.zeros(size, dtype=torch.float64, device=device)
    owners = torch.zeros(size, dtype=torch.int64, device=device)
    numbers = torch.full((size,), -1, dtype=torch.int64, device=device)
    numbers[slots] = on(device, ids)
    dimension = 0
    for low, high, read, documents in _on_device(blocks(ids), ids, device):
        if vectors is None:
            dimension = read.shape[1]
            vectors = torch.zeros((size, columns(dimension)), dtype=torch.float16, device=device)
        vectors[:, :dimension][slots[low:high]] = read
        owners[slots[low:high]] = documents
    for some, square, number in zip(*(of.split(OPERAND_ROWS) for of in (vectors, squares, numbers)), strict=True):
        some.copy_(vector_operand(some[:, :dimension]))
        torch.sum(some[:, :dimension].double().square_(), dim=1, out=square)
        some[:, dimension].masked_fill_(number < 0, -torch.inf)  # The score of an empty slot: the rest of it is zero.
    return Part(vectors, squares, numbers, owners, first_groups, float(squares.max()))


def starts(sizes: Tensor) -> Tensor:
    """``[0, sizes[0], sizes[0] + sizes[1], …]``."""
    import torch

    return torch.cat((sizes.new_zeros(1), sizes.cumsum(dim=0)))


def _slots(of: Tensor, lists: int) -> tuple[Tensor, Tensor]:
    """First group of each list, int64 ``[lists + 1]``, and the slot of each vector, int64 ``[n]``, by its list
    ``of`` int32 ``[n]``."""
    import torch

    counts = torch.bincount(of, minlength=lists)
    first_groups = starts(-(-counts // GROUP))
    order = torch.argsort(of, stable=True)
    listed = of[order].long()  # [n], ascending
    slots = torch.empty_like(order)
    slots[order] = first_groups[listed] * GROUP + torch.arange(len(order), device=of.device) - starts(counts)[listed]
    return first_groups, slots


def _on_device(
    blocks: Iterator[Block], ids: NDArray[np.int64], device: str
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Of each block the rows that ``ids`` (ascending) name: as a range of ``ids``, their vectors and documents on
    ``device``. Threads copy the next blocks there while the caller works on one."""

    def copied(block: Block) -> tuple[int, int, Tensor, Tensor]:
        low, high = np.searchsorted(ids, (block.first, block.first + len(block.vectors))).tolist()
        vectors, documents = block.vectors, block.documents
        if high - low < len(vectors):
            rows = ids[low:high] - block.first
            vectors, documents = vectors[rows], documents[rows]
        return low, high, on(device, vectors), on(device, documents.view(np.int64))

    return in_threads(copied, blocks)
