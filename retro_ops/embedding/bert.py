"""The layers of BERT over packed rows of tokens, in as few passes over memory as possible.

At widths of some hundred a layer takes as long to move data as to multiply it, so products do more than multiply:

- one product computes queries, keys and values;
- a product that is followed by a residual connection adds the residual itself. Its bias is added by the normalisation
  before, and subtracted in the other product that reads the same input: ``W (y + b) + (c - W b) = W y + c``;
- GELU is applied as the product is written, in its form with a tanh (D. Hendrycks, K. Gimpel, Gaussian Error Linear
  Units, 2016, section 2), which is within 0.0005 of the exact form.
"""

from dataclasses import dataclass
from typing import Any

from retro_ops.compute.fp16_scores import Tensor


@dataclass(frozen=True)
class Norm:
    scale: Tensor
    shift: Tensor
    epsilon: float

    @staticmethod
    def of(module: Any, more: Tensor | None) -> "Norm":
        """The layer normalisation ``module``, with ``more`` added to its output."""
        shift = module.bias.float() if more is None else module.bias.float() + more
        return Norm(module.weight, shift.to(module.weight.dtype), module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises ``x`` half ``[tokens, d]`` in place."""
        from retro_ops.embedding import kernels

        return kernels.normalise(x, self.scale, self.shift, self.epsilon)


@dataclass(frozen=True)
class Product:
    """``weight`` ``[in, out]``, ``bias`` ``[out]``."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(modules: list[Any], added: Tensor) -> "Product":
        """The linear ``modules`` side by side, for inputs that include ``added``."""
        import torch

        weight = torch.cat([module.weight for module in modules])
        bias = torch.cat([module.bias for module in modules]).float() - weight.float() @ added
        return Product(weight.t(), bias.to(weight.dtype))


@dataclass(frozen=True)
class Layer:
    attended: Product
    """Queries, keys and values."""
    out: Tensor
    out_norm: Norm
    up: Product
    down: Tensor
    down_norm: Norm


@dataclass(frozen=True)
class Bert:
    words: Tensor
    positions: Tensor
    norm: Norm
    layers: list[Layer]
    heads: int

    @staticmethod
    def of(module: Any) -> "Bert":
        """The layers of transformers' ``BertModel``, without copying its weights."""
        layers = list(module.encoder.layer)
        biases = [layer.attention.output.dense.bias.float() for layer in layers]
        after = [*biases[1:], None]
        words = module.embeddings.word_embeddings.weight
        of_type = module.embeddings.token_type_embeddings.weight[0]
        return Bert(
            (words.float() + of_type.float()).to(words.dtype),
            module.embeddings.position_embeddings.weight,
            Norm.of(module.embeddings.LayerNorm, biases[0]),
            [_layer(*of) for of in zip(layers, biases, after, strict=True)],
            module.config.num_attention_heads,
        )

    def __call__(self, ids: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        """Last hidden state, half ``[tokens, d]``.

        ``ids``, ``positions`` ``[tokens]``: tokens and their positions within the rows; ``starts`` int32
        ``[rows + 1]``: where each row begins, and the end.
        """
        import torch

        from retro_ops.embedding import kernels

        x = self.norm(self.words[ids] + self.positions[positions])
        for layer in self.layers:
            qkv = torch.addmm(layer.attended.bias, x, layer.attended.weight)
            x = layer.out_norm(x.addmm_(kernels.attend(qkv, starts, self.heads), layer.out))
            inner = torch._addmm_activation(layer.up.bias, x, layer.up.weight, use_gelu=True)
            x = layer.down_norm(x.addmm_(inner, layer.down))
        return x


def is_bert(module: Any) -> bool:
    """Whether ``module`` is a BERT that ``Bert`` computes in full."""
    config = module.config
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    return type(module).__name__ == "BertModel" and config.hidden_act == "gelu" and absolute and not config.is_decoder


def _layer(module: Any, out_bias: Tensor, next_out_bias: Tensor | None) -> Layer:
    attention, down = module.attention, module.output
    of = attention.self
    down_bias = down.dense.bias.float()
    return Layer(
        Product.of([of.query, of.key, of.value], out_bias),
        attention.output.dense.weight.t(),
        Norm.of(attention.output.LayerNorm, down_bias),
        Product.of([module.intermediate.dense], down_bias),
        down.dense.weight.t(),
        Norm.of(down.LayerNorm, next_out_bias),
    )
