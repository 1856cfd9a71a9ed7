"""The layers of a transformer over packed rows of tokens, in as few passes over memory as possible.

At widths of some hundred a layer takes as long to move data as to multiply it, so products do more than multiply:

- one product computes queries, keys and values; another both inputs of a gated activation;
- a product that is followed by a residual connection adds the residual itself. In ``PostNorm`` its bias is added by the
  normalisation before, and subtracted in the other product that reads the same input:
  ``W (y + b) + (c - W b) = W y + c``;
- an ungated GELU is applied as the product is written, in its form with a tanh (D. Hendrycks, K. Gimpel, Gaussian Error
  Linear Units, 2016, section 2), which is within 0.0005 of the exact form.

``architectures`` makes them from the models of transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retro_ops.compute.fp16_scores import Tensor


@dataclass(frozen=True)
class Rotary:
    """Rotation of queries and keys by position (J. Su et al., RoFormer, 2021), in the halves layout of transformers.

    ``cosines``, ``sines``: float32 ``[longest row, width / 2]``. ``query_scale``, ``key_scale`` ``[width]``: if given,
    each query and key is divided by its root mean square and multiplied by this before it is rotated.
    """

    cosines: Tensor
    sines: Tensor
    query_scale: Tensor | None = None
    key_scale: Tensor | None = None
    epsilon: float = 0.0


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: ``queries`` heads that share ``keys`` heads of keys and values, each ``width`` wide.

    ``scale``: factor of the products. ``back``, ``ahead``: distance at which a token sees others, None for any.
    ``bias``: float32 ``[queries, 2 * longest - 1]``, added to the scaled products, at column
    ``longest - 1 + key - query``.
    """

    queries: int
    keys: int
    width: int
    scale: float
    back: int | None = None
    ahead: int | None = None
    rotary: Rotary | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """Layer normalisation; ``centred``: False divides by the root mean square only."""

    scale: Tensor
    shift: Tensor | None
    epsilon: float
    centred: bool = True

    @staticmethod
    def of(module: Any, added: Tensor | None = None) -> "Norm":
        """That of torch's LayerNorm, with ``added`` added to its output."""
        shift = module.bias
        if added is not None:
            shift = (added if shift is None else shift.float() + added).to(module.weight.dtype)
        return Norm(module.weight, shift, module.eps)

    def __call__(self, x: Tensor, out: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Normalises ``x`` half ``[tokens, d]``, in place or to ``out``, and adds ``residual``."""
        from retro_ops.embedding import kernels

        return kernels.normalise(
            x, self.scale, self.shift, self.epsilon, centred=self.centred, out=out, residual=residual
        )


@dataclass(frozen=True)
class Product:
    """``weight`` ``[in, out]``, ``bias`` ``[out]``."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(modules: Sequence[Any], added: Tensor | None = None) -> "Product":
        """Linear ``modules`` side by side, for inputs that include ``added``."""
        import torch

        weight = torch.cat([module.weight for module in modules])
        biases = [module.bias for module in modules]
        bias = None if any(bias is None for bias in biases) else torch.cat(biases).float()
        if added is not None:
            subtracted = weight.float() @ added
            bias = -subtracted if bias is None else bias - subtracted
        return Product(weight.t(), None if bias is None else bias.to(weight.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class FeedForward:
    """``gate``: the activation of a gated product whose two inputs ``up`` computes; None: GELU without a gate."""

    up: Product
    gate: str | None

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        from retro_ops.embedding import kernels

        if self.gate is not None:
            return kernels.gate(self.up(x), self.gate)
        if self.up.bias is None:
            return torch.nn.functional.gelu(self.up(x), approximate="tanh")
        return torch._addmm_activation(self.up.bias, x, self.up.weight, use_gelu=True)


@dataclass(frozen=True)
class PostNorm:
    """A layer that normalises after each residual connection, as BERT's. ``out``, ``down``: weights ``[in, out]``."""

    attended: Product
    heads: Heads
    out: Tensor
    out_norm: Norm
    feed: FeedForward
    down: Tensor
    down_norm: Norm

    def __call__(self, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        """The next hidden state, half ``[tokens, d]``; overwrites ``x``."""
        x = self.out_norm(x.addmm_(_attend(self.attended(x), positions, starts, self.heads), self.out))
        return self.down_norm(x.addmm_(self.feed(x), self.down))


@dataclass(frozen=True)
class PreNorm:
    """A layer that normalises the input of attention and feed-forward, as most decoders do.

    ``attention_norm``: None if the embeddings are already normalised. ``out_norm``, ``down_norm``: if given, they
    normalise what is added to the residual.
    """

    attention_norm: Norm | None
    attended: Product
    heads: Heads
    out: Tensor
    out_norm: Norm | None
    feed_norm: Norm
    feed: FeedForward
    down: Tensor
    down_norm: Norm | None

    def __call__(self, x: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        """The next hidden state, half ``[tokens, d]``; overwrites ``x``."""
        import torch

        scratch = torch.empty_like(x)
        read = self.attention_norm(x, scratch) if self.attention_norm else x
        _add(x, _attend(self.attended(read), positions, starts, self.heads), self.out, self.out_norm)
        return _add(x, self.feed(self.feed_norm(x, scratch)), self.down, self.down_norm)


@dataclass(frozen=True)
class Transformer:
    """``words`` ``[vocabulary, d]``; ``positions`` ``[longest row, d]``, None where attention rotates or biases.

    ``norm``: of their sum. Without one, words are multiplied by ``scale`` instead.
    """

    words: Tensor
    positions: Tensor | None
    scale: float
    norm: Norm | None
    layers: Sequence[PostNorm | PreNorm]
    last_norm: Norm | None

    def __call__(self, ids: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        """Last hidden state, half ``[tokens, d]``.

        ``ids``, ``positions`` ``[tokens]``: tokens and their positions within the rows; ``starts`` int32
        ``[rows + 1]``: where each row begins, and the end.
        """
        from retro_ops.embedding import kernels

        if self.norm:
            x = kernels.embed(self.words, ids, self.positions, positions, self.norm)
        else:
            x = self.words[ids]
            if self.scale != 1:
                x *= self.scale
        for layer in self.layers:
            x = layer(x, positions, starts)
        return self.last_norm(x) if self.last_norm else x


def _attend(qkv: Tensor, positions: Tensor, starts: Tensor, heads: Heads) -> Tensor:
    from retro_ops.embedding import kernels

    if heads.rotary:
        kernels.rotate(qkv, positions, heads, heads.rotary)
    return kernels.attend(qkv, starts, heads)


def _add(x: Tensor, inner: Tensor, weight: Tensor, norm: Norm | None) -> Tensor:
    """Adds the product of ``inner`` and ``weight`` to ``x`` in place, normalised if there is a ``norm``."""
    return x.addmm_(inner, weight) if norm is None else norm(inner @ weight, x, x)
