"""Attention, normalisation and gated activation of packed rows, in Triton: one pass over memory each.

Needs a C compiler on the first run, and is imported only where there is a GPU.
"""

import torch
import triton
import triton.language as tl

from retro_ops.embedding.layers import Heads

LAUNCHES = {32: (32, 2, 3), 64: (32, 1, 2), 128: (16, 1, 1), 256: (16, 2, 1)}
"""By width of a head: queries, and keys, that are multiplied at a time, warps and stages. Measured on an H200. Rows are
short, so larger squares would mostly be padding; wide heads need the registers that more stages would take."""

PROGRAM_VALUES = 4096
"""Values that one program normalises: enough to fill its threads, few enough to stay in their registers."""

GATE_VALUES = 1024
LOG2_E = 1.4426950408889634


def attend(qkv: torch.Tensor, starts: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Attention within each row: half ``[tokens, queries * width]``, undefined behind the last row.

    ``qkv`` half ``[tokens, (queries + 2 * keys) * width]``: queries, keys and values, head by head; ``starts`` int32
    ``[rows + 1]``: where each row begins, and the end. Softmax is computed while keys are read (M. Milakov,
    N. Gimelshein, Online normalizer calculation for softmax, 2018).
    """
    found = qkv.new_empty((len(qkv), heads.queries * heads.width))
    rotary, nothing = heads.rotary, qkv
    scaled = rotary is not None and rotary.query_scale is not None
    room = max(16, triton.next_power_of_2(heads.width))
    side, warps, stages = LAUNCHES[min(max(room, 32), 256)]
    _attend[(len(starts) - 1, heads.queries)](
        qkv,
        found,
        starts,
        heads.scale * LOG2_E,  # The kernel computes exp2, and exp(x) = 2^(x / ln 2).
        rotary.cosines if rotary else nothing,
        rotary.sines if rotary else nothing,
        rotary.query_scale if rotary and scaled else nothing,
        rotary.key_scale if rotary and scaled else nothing,
        rotary.epsilon if rotary else 0.0,
        nothing if heads.bias is None else heads.bias,
        0 if heads.bias is None else (heads.bias.shape[1] + 1) // 2,
        queries=heads.queries,
        keys=heads.keys,
        width=heads.width,
        room=room,
        half_room=max(16, triton.next_power_of_2(heads.width // 2)),
        back=-1 if heads.back is None else heads.back,
        ahead=-1 if heads.ahead is None else heads.ahead,
        rotated=rotary is not None,
        scaled=scaled,
        biased=heads.bias is not None,
        side=side,
        num_warps=warps,
        num_stages=stages,
    )
    return found


def normalise(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor | None,
    epsilon: float,
    *,
    centred: bool = True,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layer normalisation of ``x`` half ``[n, d]``, in place or to ``out``; ``residual`` is added to the result.

    ``centred``: False divides by the root mean square only (B. Zhang, R. Sennrich, Root Mean Square Layer
    Normalization, 2019). ``out`` may be ``residual``.
    """
    rows, width = x.shape
    out = x if out is None else out
    room = triton.next_power_of_2(width)
    some = max(1, PROGRAM_VALUES // room)
    _normalise[(triton.cdiv(rows, some),)](
        x,
        out,
        scale,
        x if shift is None else shift,
        x if residual is None else residual,
        epsilon,
        rows,
        width=width,
        room=room,
        some=some,
        centred=centred,
        shifted=shift is not None,
        added=residual is not None,
        num_warps=4,
    )
    return out


def gate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(a) * b`` for ``x`` half ``[n, 2 * d]`` = ``[a, b]``: half ``[n, d]``. silu, gelu or gelu_tanh."""
    rows, double = x.shape
    found = x.new_empty((rows, double // 2))
    grid = (rows, triton.cdiv(double // 2, GATE_VALUES))
    _gate[grid](x, found, width=double // 2, activation=activation, some=GATE_VALUES, num_warps=4)
    return found


# Triton evaluates annotations and accepts only its own types.
@triton.jit  # type: ignore[untyped-decorator]
def _halves(  # type: ignore[no-untyped-def]
    base, at, inside, column, position, cosines, sines, scales, epsilon,
    half: tl.constexpr, scaled: tl.constexpr
):  # fmt: skip
    """The two halves of queries or keys, normalised and rotated by their positions."""
    first = tl.load(base + at + column, mask=inside, other=0.0)
    second = tl.load(base + at + half + column, mask=inside, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    if scaled:
        square = (tl.sum(a * a, 1) + tl.sum(b * b, 1))[:, None] / (2 * half)
        size = tl.rsqrt(square + epsilon)
        a = a * size * tl.load(scales + column, mask=column < half, other=0.0).to(tl.float32)
        b = b * size * tl.load(scales + half + column, mask=column < half, other=0.0).to(tl.float32)
    cosine = tl.load(cosines + position * half + column, mask=inside, other=0.0)
    sine = tl.load(sines + position * half + column, mask=inside, other=0.0)
    return (a * cosine - b * sine).to(first.dtype), (b * cosine + a * sine).to(first.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, starts, scale, cosines, sines, query_scales, key_scales, epsilon, bias, longest,
    queries: tl.constexpr, keys: tl.constexpr, width: tl.constexpr, room: tl.constexpr, half_room: tl.constexpr,
    back: tl.constexpr, ahead: tl.constexpr, rotated: tl.constexpr, scaled: tl.constexpr, biased: tl.constexpr,
    side: tl.constexpr
):  # fmt: skip
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(starts + row)
    length = tl.load(starts + row + 1) - first
    stride: tl.constexpr = (queries + 2 * keys) * width
    half: tl.constexpr = width // 2
    column = tl.arange(0, room)[None, :]
    half_column = tl.arange(0, half_room)[None, :]
    base = qkv + first.to(tl.int64) * stride
    of_query = base + head * width
    of_key = base + (queries + head // (queries // keys)) * width
    of_value = of_key + keys * width
    for query in range(0, length, side):
        at = (query + tl.arange(0, side))[:, None]
        if rotated:
            there = (at < length) & (half_column < half)
            q, q2 = _halves(
                of_query, at * stride, there, half_column, at, cosines, sines, query_scales, epsilon, half, scaled
            )
        else:
            q = tl.load(of_query + at * stride + column, mask=(at < length) & (column < width), other=0.0)
        best = tl.full([side], -1e30, tl.float32)
        total = tl.zeros([side], tl.float32)
        found = tl.zeros([side, room], tl.float32)
        low = 0
        high = length
        if back >= 0:
            low = tl.maximum(0, query - back) // side * side
        if ahead >= 0:
            high = tl.minimum(length, query + side + ahead)
        for key in range(low, high, side):
            of = (key + tl.arange(0, side))[:, None]
            v = tl.load(of_value + of * stride + column, mask=(of < length) & (column < width), other=0.0)
            if rotated:
                there = (of < length) & (half_column < half)
                k, k2 = _halves(
                    of_key, of * stride, there, half_column, of, cosines, sines, key_scales, epsilon, half, scaled
                )
                scores = (tl.dot(q, tl.trans(k)) + tl.dot(q2, tl.trans(k2))) * scale
            else:
                k = tl.load(of_key + of * stride + column, mask=(of < length) & (column < width), other=0.0)
                scores = tl.dot(q, tl.trans(k)) * scale
            distance = (key + tl.arange(0, side))[None, :] - at
            seen = (distance + at < length) & (at >= 0)
            if biased:
                more = tl.load(bias + head * (2 * longest - 1) + longest - 1 + distance, mask=seen & (at < length))
                scores += more * 1.4426950408889634
            if back >= 0:
                seen = seen & (distance >= -back)
            if ahead >= 0:
                seen = seen & (distance <= ahead)
            scores = tl.where(seen, scores, -1e30)
            higher = tl.maximum(best, tl.max(scores, 1))
            # A query that has seen no key yet has the weight 0 for all, not 2^0.
            weights = tl.where(seen, tl.exp2(scores - higher[:, None]), 0.0)
            shrunk = tl.exp2(best - higher)
            total = total * shrunk + tl.sum(weights, 1)
            found = found * shrunk[:, None] + tl.dot(weights.to(v.dtype), v)
            best = higher
        place = out + (first + at).to(tl.int64) * (queries * width) + head * width + column
        tl.store(place, (found / total[:, None]).to(q.dtype), mask=(at < length) & (column < width))


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    x, out, scale, shift, residual, epsilon, rows,
    width: tl.constexpr, room: tl.constexpr, some: tl.constexpr,
    centred: tl.constexpr, shifted: tl.constexpr, added: tl.constexpr
):  # fmt: skip
    at = (tl.program_id(0).to(tl.int64) * some + tl.arange(0, some))[:, None]
    column = tl.arange(0, room)[None, :]
    inside = (at < rows) & (column < width)
    place = at * width + column
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if centred:
        mean = tl.sum(values, 1)[:, None] / width
        values = tl.where(column < width, values - mean, 0.0)
    square = tl.sum(values * values, 1)[:, None] / width
    found = values * tl.rsqrt(square + epsilon) * tl.load(scale + column, mask=column < width, other=0.0).to(tl.float32)
    if shifted:
        found += tl.load(shift + column, mask=column < width, other=0.0).to(tl.float32)
    if added:
        found += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(  # type: ignore[no-untyped-def]
    x, out, width: tl.constexpr, activation: tl.constexpr, some: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * some + tl.arange(0, some)
    inside = column < width
    a = tl.load(x + row * (2 * width) + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + row * (2 * width) + width + column, mask=inside, other=0.0).to(tl.float32)
    if activation == "silu":
        a = a * tl.sigmoid(a)
    elif activation == "gelu":
        a = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        a = a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
    tl.store(out + row * width + column, (a * b).to(out.dtype.element_ty), mask=inside)
