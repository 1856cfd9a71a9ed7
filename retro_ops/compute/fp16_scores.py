"""Scores that say which vectors are nearest, as one product of half-precision matrices on tensor cores.

``score(q, x) = q.x - |x|^2 / 2 = (|q|^2 - |q - x|^2) / 2``: the larger, the nearer. The square takes two more columns
of the operands (``[q, 1, 1]`` and ``[x, high, low]``, since one half has too few bits). So a score is one matrix
product of halves, with products and sums in float32, rounded to half once. Operands are padded with zeros to a multiple
of 8 columns, as tensor cores require.
"""

from typing import Any

from numpy.typing import NDArray

from retro_ops.compute.device import Device

Tensor = Any
"""torch.Tensor: torch is imported only where there is work for it."""

ROUNDING = 2.0**-10
"""Bound on the error of a score of vectors no longer than 1. Half of it is the rounding to half precision (scores are
below 2 in size); the rest is far more than float32 sums of some thousand products lose."""

_COLUMNS = 8


def prepare(device: Device) -> str:
    """Torch's name of ``device``. Sets torch to sum halves in float32, and to multiply float32 without TF32."""
    import torch

    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    return device.chosen


def on(device: str, values: NDArray[Any]) -> Tensor:
    """A tensor of ``values`` on ``device`` (torch's name)."""
    import torch

    # Arrays over bytes of the store are read-only, and torch warns of those.
    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(device)


def query_operand(vectors: Tensor) -> Tensor:
    """Left operand of scores: half ``[..., n, columns(d)]``, of ``vectors`` ``[..., n, d]``."""
    operand = vectors.new_zeros((*vectors.shape[:-1], columns(vectors.shape[-1])), dtype=_half())
    operand[..., : vectors.shape[-1]] = vectors
    operand[..., vectors.shape[-1] : vectors.shape[-1] + 2] = 1
    return operand


def vector_operand(vectors: Tensor) -> Tensor:
    """Right operand of scores: half ``[..., n, columns(d)]``, of ``vectors`` ``[..., n, d]``.

    Vectors are rounded to half first, so that the square is that of the rounded vector.
    """
    dimension = vectors.shape[-1]
    operand = vectors.new_zeros((*vectors.shape[:-1], columns(dimension)), dtype=_half())
    operand[..., :dimension] = vectors
    square = operand[..., :dimension].float().square_().sum(dim=-1) / -2
    high = square.to(operand.dtype)
    operand[..., dimension] = high
    operand[..., dimension + 1] = square - high.float()
    return operand


def columns(dimension: int) -> int:
    """Columns of an operand of vectors of ``dimension``."""
    return -(-(dimension + 2) // _COLUMNS) * _COLUMNS


def scores(left: Tensor, right: Tensor) -> Tensor:
    """Scores, half ``[..., m, n]``, of operands ``[..., m, c]`` and ``[..., n, c]``."""
    return left @ right.transpose(-1, -2)


def _half() -> Any:
    import torch

    return torch.float16
