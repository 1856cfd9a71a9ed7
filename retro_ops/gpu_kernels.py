"""Attention and mean over rows that are packed one after the other, for short rows. Needs a GPU and triton.

The usual kernels (Dao, FlashAttention-2, 2023) take 128 queries and keys at a time, so a row of 66 ids wastes three
quarters of what they compute. Here a program has one head of one row, in blocks that suit it.
"""

import torch
import triton
import triton.language as tl

QUERIES, KEYS, WARPS = 32, 32, 1
"""Of a block, and warps of a program: the fastest of those tried on an H100 for rows of 64 to 66 ids."""

LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    query, key, value, out, starts, scale,
    token: tl.constexpr, width: tl.constexpr, queries: tl.constexpr, keys: tl.constexpr,
):  # fmt: skip
    """``scale``: of the scores, times log2(e): exponents are of base 2. ``token``: elements from one to the next."""
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(starts + row).to(tl.int64)
    length = (tl.load(starts + row + 1) - first).to(tl.int32)
    base = first * token + head * width
    wide = tl.arange(0, width)
    for low in range(0, length, queries):
        rows = low + tl.arange(0, queries)
        here = base + rows[:, None] * token + wide[None, :]
        q = tl.load(query + here, mask=rows[:, None] < length, other=0.0)
        most = tl.full([queries], float("-inf"), tl.float32)
        total = tl.zeros([queries], tl.float32)
        sums = tl.zeros([queries, width], tl.float32)
        for left in range(0, length, keys):
            columns = left + tl.arange(0, keys)
            there = base + columns[:, None] * token + wide[None, :]
            k = tl.load(key + there, mask=columns[:, None] < length, other=0.0)
            v = tl.load(value + there, mask=columns[:, None] < length, other=0.0)
            scores = tl.dot(q, tl.trans(k)) * scale
            scores = tl.where(columns[None, :] < length, scores, float("-inf"))
            higher = tl.maximum(most, tl.max(scores, 1))
            shares = tl.exp2(scores - higher[:, None])
            kept = tl.exp2(most - higher)
            total = total * kept + tl.sum(shares, 1)
            sums = sums * kept[:, None] + tl.dot(shares.to(v.dtype), v)
            most = higher
        tl.store(out + here, (sums / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _mean(hidden, out, starts, width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    first = tl.load(starts + row).to(tl.int64)
    length = (tl.load(starts + row + 1) - first).to(tl.int32)
    wide = tl.arange(0, padded)
    sums = tl.zeros([padded], tl.float32)
    for low in range(0, length, block):
        tokens = low + tl.arange(0, block)
        there = (first + tokens)[:, None] * width + wide[None, :]
        inside = (tokens[:, None] < length) & (wide[None, :] < width)
        sums += tl.sum(tl.load(hidden + there, mask=inside, other=0.0).to(tl.float32), 0)
    norm = tl.sqrt(tl.sum(sums * sums, 0))
    unit = sums / tl.maximum(norm, 1e-12)  # A mean points where the sum does.
    tl.store(out + row.to(tl.int64) * width + wide, unit.to(out.dtype.element_ty), mask=wide < width)


@torch.library.custom_op("retro_ops::attend", mutates_args=())
def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention within each row. ``query``, ``key``, ``value``: ``[tokens, heads, width]``, width a power of 2;
    ``starts``: int32 ``[rows + 1]``. Tokens behind the last row are not written."""
    query, key, value = (array.contiguous() for array in (query, key, value))
    out = torch.empty_like(query)
    _, heads, width = query.shape
    _attend[(len(starts) - 1, heads)](
        query, key, value, out, starts, scale * LOG2_E, heads * width, width, QUERIES, KEYS, num_warps=WARPS
    )
    return out


@attend.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def mean_direction(hidden: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """The mean of each row of ``hidden`` ``[tokens, width]``, of length 1: float16 ``[rows, width]``."""
    width = hidden.shape[1]
    out = torch.empty(len(starts) - 1, width, dtype=torch.float16, device=hidden.device)
    _mean[(len(out),)](hidden, out, starts, width, triton.next_power_of_2(width), 16, num_warps=4)
    return out
