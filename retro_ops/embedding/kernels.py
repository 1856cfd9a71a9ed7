"""Attention and layer normalisation for BERT, in Triton: one pass over memory each.

Needs a C compiler on the first run, and is imported only where there is a GPU.
"""

import torch
import triton
import triton.language as tl

SIDE = 32
"""Queries, and keys, that are multiplied at a time: rows are short, so larger squares would mostly be padding."""

NORMALISED_ROWS = 8


def attend(qkv: torch.Tensor, starts: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention within each row: half ``[tokens, d]``, undefined behind the last row.

    ``qkv`` half ``[tokens, 3 * d]``: queries, keys and values, head by head; ``starts`` int32 ``[rows + 1]``: where
    each row begins, and the end. Softmax is computed while keys are read (M. Milakov, N. Gimelshein, Online normalizer
    calculation for softmax, 2018).
    """
    width = qkv.shape[1] // (3 * heads)
    found = qkv.new_empty((len(qkv), heads * width))
    # The kernel computes exp2, and exp(x) = 2^(x / ln 2).
    scale = width**-0.5 * 1.4426950408889634
    _attend[(len(starts) - 1, heads)](
        qkv, found, starts, scale, heads * width, width, triton.next_power_of_2(width), SIDE, num_warps=2
    )
    return found


def normalise(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Layer normalisation of ``x`` half ``[n, d]``, in place."""
    rows, width = x.shape
    grid = (triton.cdiv(rows, NORMALISED_ROWS),)
    _normalise[grid](x, scale, shift, epsilon, rows, width, triton.next_power_of_2(width), NORMALISED_ROWS, num_warps=4)
    return x


# Triton evaluates annotations and accepts only its own types.
@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, starts, scale, d: tl.constexpr, width: tl.constexpr, room: tl.constexpr, side: tl.constexpr
):
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(starts + row)
    length = tl.load(starts + row + 1) - first
    column = tl.arange(0, room)
    inside = (column < width)[None, :]
    base = qkv + first.to(tl.int64) * (3 * d) + head * width + column[None, :]
    for query in range(0, length, side):
        at = (query + tl.arange(0, side))[:, None]
        q = tl.load(base + at * (3 * d), mask=(at < length) & inside, other=0.0)
        best = tl.full([side], -1e30, tl.float32)
        total = tl.zeros([side], tl.float32)
        found = tl.zeros([side, room], tl.float32)
        for key in range(0, length, side):
            of = (key + tl.arange(0, side))[:, None]
            there = (of < length) & inside
            k = tl.load(base + d + of * (3 * d), mask=there, other=0.0)
            v = tl.load(base + 2 * d + of * (3 * d), mask=there, other=0.0)
            scores = tl.dot(q, tl.trans(k)) * scale
            scores = tl.where((key + tl.arange(0, side) < length)[None, :], scores, -1e30)
            higher = tl.maximum(best, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrunk = tl.exp2(best - higher)
            total = total * shrunk + tl.sum(weights, 1)
            found = found * shrunk[:, None] + tl.dot(weights.to(v.dtype), v)
            best = higher
        place = out + (first + at).to(tl.int64) * d + head * width + column[None, :]
        tl.store(place, (found / total[:, None]).to(q.dtype), mask=(at < length) & inside)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    x, scale, shift, epsilon, rows, width: tl.constexpr, room: tl.constexpr, some: tl.constexpr
):
    at = (tl.program_id(0).to(tl.int64) * some + tl.arange(0, some))[:, None]
    column = tl.arange(0, room)[None, :]
    inside = column < width
    place = x + at * width + column
    values = tl.load(place, mask=(at < rows) & inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1)[:, None] / width
    away = tl.where(inside, values - mean, 0.0)
    variance = tl.sum(away * away, 1)[:, None] / width
    unit = away * tl.rsqrt(variance + epsilon)
    scaled = unit * tl.load(scale + column, mask=inside, other=0.0) + tl.load(shift + column, mask=inside, other=0.0)
    tl.store(place, scaled.to(x.dtype.element_ty), mask=(at < rows) & inside)
