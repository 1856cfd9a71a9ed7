"""What layers do beside products, of packed rows, in Triton: one pass over memory each.

Needs a C compiler on the first run, and is imported only where there is a GPU.
"""

import torch
import triton
import triton.language as tl

from retro_ops.embedding.layers import Heads, Norm, Rotary

ROTATED_VALUES = 4096
NORMALISED_VALUES = 4096
GATED_ROWS, GATED_COLUMNS = 16, 128
"""Values that one program computes: enough to fill its threads, few enough to stay in their registers."""

LOG2_E = 1.4426950408889634

KEYS = 16
"""Keys of a row that are multiplied at a time: the fewest that tensor cores take, since rows are short."""


def attend(qkv: torch.Tensor, starts: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Attention within each row: half ``[tokens, queries * width]``, undefined behind the last row.

    ``qkv`` half ``[tokens, (queries + 2 * keys) * width]``: queries, keys and values, head by head, already rotated;
    ``starts`` int32 ``[rows + 1]``: where each row begins, and the end. Softmax is computed while keys are read
    (M. Milakov, N. Gimelshein, Online normalizer calculation for softmax, 2018).
    """
    found = qkv.new_empty((len(qkv), heads.queries * heads.width))
    room = max(16, triton.next_power_of_2(heads.width))
    _attend[((len(starts) - 1) * heads.queries,)](
        qkv,
        found,
        starts,
        heads.scale * LOG2_E,  # The kernel computes exp2, and exp(x) = 2^(x / ln 2).
        qkv if heads.bias is None else heads.bias,
        0 if heads.bias is None else (heads.bias.shape[1] + 1) // 2,
        queries=heads.queries,
        keys=heads.keys,
        width=heads.width,
        room=room,
        back=-1 if heads.back is None else heads.back,
        ahead=-1 if heads.ahead is None else heads.ahead,
        biased=heads.bias is not None,
        some_queries=32 if room < 256 else 16,  # Wide heads need the registers.
        some_keys=KEYS,
        num_warps=1,
        num_stages=2,
    )
    return found


def rotate(qkv: torch.Tensor, positions: torch.Tensor, heads: Heads, rotary: Rotary) -> None:
    """Rotates the queries and keys of ``qkv`` (see ``attend``) in place, by ``positions`` ``[tokens]``."""
    half = heads.width // 2
    room = triton.next_power_of_2(half)
    some = max(1, ROTATED_VALUES // (2 * room))
    scaled = rotary.query_scale is not None
    _rotate[((heads.queries + heads.keys) * triton.cdiv(len(qkv), some),)](
        qkv,
        positions,
        rotary.cosines,
        rotary.sines,
        rotary.query_scale if scaled else qkv,
        rotary.key_scale if scaled else qkv,
        rotary.epsilon,
        len(qkv),
        queries=heads.queries,
        keys=heads.keys,
        half=half,
        room=room,
        some=some,
        scaled=scaled,
        num_warps=4,
    )


def embed(
    words: torch.Tensor, ids: torch.Tensor, table: torch.Tensor | None, positions: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The normalised input of the first layer, half ``[tokens, d]``: vectors of ``ids`` ``[tokens]`` in ``words``
    ``[vocabulary, d]``, plus those of ``positions`` ``[tokens]`` in ``table`` ``[longest row, d]`` if there is one."""
    width = words.shape[1]
    found = words.new_empty((len(ids), width))
    room = triton.next_power_of_2(width)
    some = max(1, NORMALISED_VALUES // room)
    _embed[(triton.cdiv(len(ids), some),)](
        words,
        ids,
        words if table is None else table,
        positions,
        found,
        norm.scale,
        words if norm.shift is None else norm.shift,
        norm.epsilon,
        len(ids),
        width=width,
        room=room,
        some=some,
        positioned=table is not None,
        centred=norm.centred,
        shifted=norm.shift is not None,
        num_warps=4,
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
    some = max(1, NORMALISED_VALUES // room)
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
    across = triton.cdiv(double // 2, GATED_COLUMNS)
    _gate[(across * triton.cdiv(rows, GATED_ROWS),)](
        x,
        found,
        rows,
        width=double // 2,
        across=across,
        activation=activation,
        some_rows=GATED_ROWS,
        some_columns=GATED_COLUMNS,
        num_warps=8,
    )
    return found


# Triton evaluates annotations and accepts only its own types.
@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    qkv, positions, cosines, sines, query_scales, key_scales, epsilon, tokens,
    queries: tl.constexpr, keys: tl.constexpr, half: tl.constexpr, room: tl.constexpr, some: tl.constexpr,
    scaled: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0) % (queries + keys)
    token = (tl.program_id(0) // (queries + keys)).to(tl.int64) * some + tl.arange(0, some)
    column = tl.arange(0, room)[None, :]
    inside = (token < tokens)[:, None] & (column < half)
    at = token[:, None] * ((queries + 2 * keys) * 2 * half) + head * 2 * half + column
    a = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(qkv + at + half, mask=inside, other=0.0).to(tl.float32)
    if scaled:
        size = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1))[:, None] / (2 * half) + epsilon)
        scales = query_scales if head < queries else key_scales
        a = a * size * tl.load(scales + column, mask=column < half, other=0.0).to(tl.float32)
        b = b * size * tl.load(scales + half + column, mask=column < half, other=0.0).to(tl.float32)
    angle = tl.load(positions + token, mask=token < tokens, other=0)[:, None] * half + column
    cosine = tl.load(cosines + angle, mask=inside, other=0.0)
    sine = tl.load(sines + angle, mask=inside, other=0.0)
    tl.store(qkv + at, (a * cosine - b * sine).to(qkv.dtype.element_ty), mask=inside)
    tl.store(qkv + at + half, (b * cosine + a * sine).to(qkv.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, starts, scale, bias, longest,
    queries: tl.constexpr, keys: tl.constexpr, width: tl.constexpr, room: tl.constexpr,
    back: tl.constexpr, ahead: tl.constexpr, biased: tl.constexpr,
    some_queries: tl.constexpr, some_keys: tl.constexpr
):  # fmt: skip
    # Heads of one token are next to each other in memory, so they are computed at about the same time.
    row, head = tl.program_id(0) // queries, tl.program_id(0) % queries
    first = tl.load(starts + row)
    length = tl.load(starts + row + 1) - first
    stride: tl.constexpr = (queries + 2 * keys) * width
    base = qkv + first.to(tl.int64) * stride
    of_query = base + head * width
    of_key = base + (queries + head // (queries // keys)) * width
    of_value = of_key + keys * width
    to = out + first.to(tl.int64) * (queries * width) + head * width
    of_bias = bias + head * (2 * longest - 1) + longest - 1
    column = tl.arange(0, room)[None, :]
    for query in range(0, length, some_queries):
        at = (query + tl.arange(0, some_queries))[:, None]
        inside = (at < length) & (column < width)
        q = tl.load(of_query + at * stride + column, mask=inside, other=0.0)
        best = tl.full([some_queries], -1e30, tl.float32)
        total = tl.zeros([some_queries], tl.float32)
        found = tl.zeros([some_queries, room], tl.float32)
        low = 0
        high = length
        if back >= 0:
            low = tl.maximum(0, query - back) // some_keys * some_keys
        if ahead >= 0:
            high = tl.minimum(length, query + some_queries + ahead)
        for key in range(low, high, some_keys):
            of = (key + tl.arange(0, some_keys))[:, None]
            of_inside = (of < length) & (column < width)
            k = tl.load(of_key + of * stride + column, mask=of_inside, other=0.0)
            v = tl.load(of_value + of * stride + column, mask=of_inside, other=0.0)
            scores = tl.dot(q, tl.trans(k)) * scale
            distance = (key + tl.arange(0, some_keys))[None, :] - at
            seen = (distance + at < length) & (at >= 0)
            if biased:
                scores += tl.load(of_bias + distance, mask=seen & (at < length), other=0.0) * 1.4426950408889634
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
        tl.store(to + at.to(tl.int64) * (queries * width) + column, (found / total[:, None]).to(q.dtype), mask=inside)


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
    found = _normalised(values, scale, shift, epsilon, column, width, centred, shifted)
    if added:
        found += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _embed(  # type: ignore[no-untyped-def]
    words, ids, table, positions, out, scale, shift, epsilon, tokens,
    width: tl.constexpr, room: tl.constexpr, some: tl.constexpr, positioned: tl.constexpr,
    centred: tl.constexpr, shifted: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * some + tl.arange(0, some)
    column = tl.arange(0, room)[None, :]
    inside = (token < tokens)[:, None] & (column < width)
    word = tl.load(ids + token, mask=token < tokens, other=0).to(tl.int64)[:, None]
    values = tl.load(words + word * width + column, mask=inside, other=0.0).to(tl.float32)
    if positioned:
        position = tl.load(positions + token, mask=token < tokens, other=0).to(tl.int64)[:, None]
        values += tl.load(table + position * width + column, mask=inside, other=0.0).to(tl.float32)
    found = _normalised(values, scale, shift, epsilon, column, width, centred, shifted)
    tl.store(out + token[:, None] * width + column, found.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _normalised(  # type: ignore[no-untyped-def]
    values, scale, shift, epsilon, column, width: tl.constexpr, centred: tl.constexpr, shifted: tl.constexpr
):
    if centred:
        mean = tl.sum(values, 1)[:, None] / width
        values = tl.where(column < width, values - mean, 0.0)
    square = tl.sum(values * values, 1)[:, None] / width
    found = values * tl.rsqrt(square + epsilon) * tl.load(scale + column, mask=column < width, other=0.0).to(tl.float32)
    if shifted:
        found += tl.load(shift + column, mask=column < width, other=0.0).to(tl.float32)
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _gate(  # type: ignore[no-untyped-def]
    x, out, rows, width: tl.constexpr, across: tl.constexpr, activation: tl.constexpr,
    some_rows: tl.constexpr, some_columns: tl.constexpr
):  # fmt: skip
    row = ((tl.program_id(0) // across).to(tl.int64) * some_rows + tl.arange(0, some_rows))[:, None]
    column = tl.program_id(0) % across * some_columns + tl.arange(0, some_columns)[None, :]
    inside = (row < rows) & (column < width)
    a = tl.load(x + row * (2 * width) + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + row * (2 * width) + width + column, mask=inside, other=0.0).to(tl.float32)
    if activation == "silu":
        a = a * tl.sigmoid(a)
    elif activation == "gelu":
        a = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        a = a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
    tl.store(out + row * width + column, (a * b).to(out.dtype.element_ty), mask=inside)
