"""Which of many vectors is nearest, by one product of half-precision matrices on tensor cores.

``score(q, x) = q.x - |x|^2 / 2 = (|q|^2 - |q - x|^2) / 2``: the larger, the nearer. The square is two columns more in
the operands (``[q, 1, 1]`` and ``[x, high, low]``, as one half has too few bits), so a score is one matrix product:
half operands, products and sums in float32, rounded to half once. Operands are filled with zeros to the multiple of 8
columns that tensor cores want.
"""

from typing import Any

from numpy.typing import NDArray

from retro_ops.compute.device import Device

Tensor = Any
"""torch.Tensor: torch is imported only where there is work for it."""

ROUNDING = 2.0**-10
"""A score is wrong by less than this for vectors of length 1 at most: half of that is the rounding to half (scores are
below 2 in size), the rest is far more than float32 sums of a few hundred or thousand products lose."""

_COLUMNS = 8


def prepare(device: Device) -> str:
    """Torch's name of ``device``. Sums of halves and products of float32 are float32 there from now on."""
    import torch

    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    return device.chosen


def on(device: str, values: NDArray[Any]) -> Tensor:
    """``values`` on ``device`` (torch's name)."""
    import torch

    # Arrays over the store's bytes cannot be written to, which torch warns of.
    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(device)


def query_operand(vectors: Tensor) -> Tensor:
    """Left operand of scores: half ``[..., n, columns(d)]`` of ``[..., n, d]``."""
    asked = vectors.new_zeros((*vectors.shape[:-1], columns(vectors.shape[-1])), dtype=_half())
    asked[..., : vectors.shape[-1]] = vectors
    asked[..., vectors.shape[-1] : vectors.shape[-1] + 2] = 1
    return asked


def vector_operand(vectors: Tensor) -> Tensor:
    """Right operand, likewise. Vectors are rounded to half first, so a score is that of what is multiplied."""
    dimension = vectors.shape[-1]
    given = vectors.new_zeros((*vectors.shape[:-1], columns(dimension)), dtype=_half())
    given[..., :dimension] = vectors
    square = given[..., :dimension].float().square_().sum(dim=-1) / -2
    high = square.to(given.dtype)
    given[..., dimension] = high
    given[..., dimension + 1] = square - high.float()
    return given


def columns(dimension: int) -> int:
    return -(-(dimension + 2) // _COLUMNS) * _COLUMNS


def scores(asked: Tensor, given: Tensor) -> Tensor:
    """Half ``[..., m, n]`` of operands ``[..., m, c]`` and ``[..., n, c]``."""
    return asked @ given.transpose(-1, -2)


def _half() -> Any:
    import torch

    return torch.float16
