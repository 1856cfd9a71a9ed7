"""What the kernels of ``retro_ops.embedding.kernels`` compute, in plain torch, row by row."""

import torch

from retro_ops.embedding.layers import Heads, Norm, Rotary


def attend(qkv: torch.Tensor, starts: torch.Tensor, heads: Heads) -> torch.Tensor:
    found = qkv.new_zeros((len(qkv), heads.queries * heads.width))
    for start, end in zip(starts.tolist(), starts[1:].tolist(), strict=False):
        if end > start:
            found[start:end] = _row(qkv[start:end].float(), heads).to(qkv.dtype)
    return found


def _row(qkv: torch.Tensor, heads: Heads) -> torch.Tensor:
    length = len(qkv)
    sizes = [count * heads.width for count in (heads.queries, heads.keys, heads.keys)]
    q, k, v = (part.reshape(length, -1, heads.width).transpose(0, 1) for part in qkv.split(sizes, 1))
    k, v = (x.repeat_interleave(heads.queries // heads.keys, 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * heads.scale
    at = torch.arange(length, device=qkv.device)
    distance = at[None, :] - at[:, None]
    if heads.bias is not None:
        scores = scores + heads.bias[:, distance + (heads.bias.shape[1] + 1) // 2 - 1]
    if heads.back is not None:
        scores = scores.masked_fill(distance < -heads.back, float("-inf"))
    if heads.ahead is not None:
        scores = scores.masked_fill(distance > heads.ahead, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)


def rotate(qkv: torch.Tensor, positions: torch.Tensor, heads: Heads, rotary: Rotary) -> None:
    of_queries, of_keys = heads.queries * heads.width, heads.keys * heads.width
    for part, scale in (
        (qkv[:, :of_queries], rotary.query_scale),
        (qkv[:, of_queries : of_queries + of_keys], rotary.key_scale),
    ):
        x = part.reshape(len(qkv), -1, heads.width).float()
        if scale is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + rotary.epsilon) * scale.float()
        cosine, sine = (angles[positions][:, None] for angles in (rotary.cosines, rotary.sines))
        a, b = x.chunk(2, -1)
        part.copy_(torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1).flatten(1))


def embed(
    words: torch.Tensor, ids: torch.Tensor, table: torch.Tensor | None, positions: torch.Tensor, norm: Norm
) -> torch.Tensor:
    x = words[ids].float()
    x = x if table is None else x + table[positions].float()
    return normalise(x, norm.scale, norm.shift, norm.epsilon, centred=norm.centred).to(words.dtype)


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
    values = x.float()
    values = values - values.mean(1, keepdim=True) if centred else values
    found = values * torch.rsqrt(values.square().mean(1, keepdim=True) + epsilon) * scale.float()
    found = found if shift is None else found + shift.float()
    found = found if residual is None else found + residual.float()
    return (x if out is None else out).copy_(found)


def gate(x: torch.Tensor, activation: str) -> torch.Tensor:
    a, b = x.float().chunk(2, 1)
    if activation == "silu":
        activated = torch.nn.functional.silu(a)
    else:
        activated = torch.nn.functional.gelu(a, approximate="tanh" if activation == "gelu_tanh" else "none")
    return (activated * b).to(x.dtype)
