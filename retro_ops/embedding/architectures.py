"""Makes packed ``layers`` from the models of transformers: one function for each kind of layer, one table of models.

Each function raises UnsupportedError if a setting of the model is not one that the layers compute.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from retro_ops.compute.fp16_scores import Tensor
from retro_ops.embedding.layers import FeedForward, Heads, Norm, PostNorm, PreNorm, Product, Rotary, Transformer


class UnsupportedError(Exception):
    """The layers do not compute this model."""


GATES = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def packed_layers(module: Any, longest: int) -> Transformer:
    """The layers of ``module``, for rows of at most ``longest`` tokens. UnsupportedError if there are none."""
    make = ARCHITECTURES.get(type(module).__name__)
    if make is None:
        raise UnsupportedError(f"no packed layers for {type(module).__name__}")
    return make(module, longest)


def _bert(module: Any, longest: int) -> Transformer:
    """BERT and RoBERTa, whose positions start behind the id of the padding."""
    config, embeddings = module.config, module.embeddings
    _require(getattr(config, "position_embedding_type", None) in (None, "absolute"), "its positions are relative")
    _require(not getattr(config, "is_decoder", False), "it is a decoder")
    _require_gelu(config.hidden_act)
    first = getattr(embeddings, "padding_idx", None)
    shared = _heads(config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    parts = [
        (
            [of.attention.self.query, of.attention.self.key, of.attention.self.value],
            of.attention.output.dense,
            of.attention.output.LayerNorm,
            of.intermediate.dense,
            of.output.dense,
            of.output.LayerNorm,
        )
        for of in module.encoder.layer
    ]
    positions = _positions(embeddings.position_embeddings.weight, 0 if first is None else first + 1, longest)
    return _post_norm(_typed_words(embeddings), positions, embeddings.LayerNorm, parts, shared)


def _distilbert(module: Any, longest: int) -> Transformer:
    config, embeddings = module.config, module.embeddings
    _require_gelu(config.activation)
    parts = [
        (
            [of.attention.q_lin, of.attention.k_lin, of.attention.v_lin],
            of.attention.out_lin,
            of.sa_layer_norm,
            of.ffn.lin1,
            of.ffn.lin2,
            of.output_layer_norm,
        )
        for of in module.transformer.layer
    ]
    positions = _positions(embeddings.position_embeddings.weight, 0, longest)
    return _post_norm(
        embeddings.word_embeddings.weight,
        positions,
        embeddings.LayerNorm,
        parts,
        _heads(config.n_heads, config.dim // config.n_heads),
    )


def _mpnet(module: Any, longest: int) -> Transformer:
    """BERT with a bias by relative position, the same in all layers."""
    import torch

    config, embeddings = module.config, module.embeddings
    _require_gelu(config.hidden_act)
    distances = torch.arange(1 - longest, longest)
    buckets = module.encoder.relative_position_bucket(distances, num_buckets=config.relative_attention_num_buckets)
    table = module.encoder.relative_attention_bias
    bias = table(buckets.to(table.weight.device)).float().t().contiguous()
    parts = [
        (
            [of.attention.attn.q, of.attention.attn.k, of.attention.attn.v],
            of.attention.attn.o,
            of.attention.LayerNorm,
            of.intermediate.dense,
            of.output.dense,
            of.output.LayerNorm,
        )
        for of in module.encoder.layer
    ]
    return _post_norm(
        embeddings.word_embeddings.weight,
        _positions(embeddings.position_embeddings.weight, embeddings.padding_idx + 1, longest),
        embeddings.LayerNorm,
        parts,
        _heads(config.num_attention_heads, config.hidden_size // config.num_attention_heads, bias=bias),
    )


def _nomic(module: Any, longest: int) -> Transformer:
    """BERT with rotated queries and keys and a gated activation."""
    config, embeddings = module.config, module.embeddings
    first = module.layers[0].self_attn
    rotary = _rotary(module.rotary_emb, "", first.head_dim, longest)
    heads = _heads(config.num_attention_heads, first.head_dim, scale=first.scaling, rotary=rotary)
    layers = [
        PostNorm(
            Product.of([of.self_attn.q_proj, of.self_attn.k_proj, of.self_attn.v_proj]),
            heads,
            _plain(of.self_attn.o_proj),
            Norm.of(of.post_attention_layernorm),
            _gated([of.mlp.gate_proj, of.mlp.up_proj], config.hidden_act),
            _plain(of.mlp.down_proj),
            Norm.of(of.post_mlp_layernorm),
        )
        for of in module.layers
    ]
    return Transformer(_typed_words(embeddings), None, 1.0, Norm.of(embeddings.LayerNorm), layers, None)


def _modernbert(module: Any, longest: int) -> Transformer:
    import torch

    config = module.config
    width = config.hidden_size // config.num_attention_heads
    rotary = {kind: _rotary(module.rotary_emb, f"{kind}_", width, longest) for kind in set(config.layer_types)}
    layers = []
    for of in module.layers:
        reach = config.sliding_window if of.attention_type == "sliding_attention" else None
        turns = rotary[of.attention_type]
        heads = _heads(config.num_attention_heads, width, back=reach, ahead=reach, rotary=turns)
        layers.append(
            PreNorm(
                None if isinstance(of.attn_norm, torch.nn.Identity) else Norm.of(of.attn_norm),
                Product.of([of.attn.Wqkv]),
                heads,
                _plain(of.attn.Wo),
                None,
                Norm.of(of.mlp_norm),
                _gated([of.mlp.Wi], config.hidden_activation),
                _plain(of.mlp.Wo),
                None,
            )
        )
    embeddings = module.embeddings
    return Transformer(
        embeddings.tok_embeddings.weight, None, 1.0, Norm.of(embeddings.norm), layers, Norm.of(module.final_norm)
    )


def _decoder(module: Any, longest: int) -> Transformer:
    """Llama, Mistral, Qwen2 and Qwen3: root mean square norms, grouped heads, rotated, each token sees those before."""
    rotary = _rotary(module.rotary_emb, "", _head_width(module.config), longest)
    layers = [
        PreNorm(
            _rms(of.input_layernorm),
            Product.of([of.self_attn.q_proj, of.self_attn.k_proj, of.self_attn.v_proj]),
            _decoder_heads(module.config, of.self_attn, rotary, _rms),
            _plain(of.self_attn.o_proj),
            None,
            _rms(of.post_attention_layernorm),
            _gated([of.mlp.gate_proj, of.mlp.up_proj], module.config.hidden_act),
            _plain(of.mlp.down_proj),
            None,
        )
        for of in module.layers
    ]
    return Transformer(module.embed_tokens.weight, None, 1.0, None, layers, _rms(module.norm))


def _gemma(module: Any, longest: int) -> Transformer:
    """Gemma 3: as ``_decoder``, with norms before and after, and scales that are stored less one."""
    config = module.config
    _require(getattr(config, "attn_logit_softcapping", None) is None, "it caps its scores")
    width = _head_width(config)
    rotary = {kind: _rotary(module.rotary_emb, f"{kind}_", width, longest) for kind in set(config.layer_types)}
    layers = [
        PreNorm(
            _rms_plus_one(of.input_layernorm),
            Product.of([of.self_attn.q_proj, of.self_attn.k_proj, of.self_attn.v_proj]),
            _decoder_heads(config, of.self_attn, rotary[of.self_attn.layer_type], _rms_plus_one),
            _plain(of.self_attn.o_proj),
            _rms_plus_one(of.post_attention_layernorm),
            _rms_plus_one(of.pre_feedforward_layernorm),
            _gated([of.mlp.gate_proj, of.mlp.up_proj], config.hidden_activation),
            _plain(of.mlp.down_proj),
            _rms_plus_one(of.post_feedforward_layernorm),
        )
        for of in module.layers
    ]
    scale = float(module.embed_tokens.scalar_embed_scale)
    return Transformer(module.embed_tokens.weight, None, scale, None, layers, _rms_plus_one(module.norm))


ARCHITECTURES: dict[str, Callable[[Any, int], Transformer]] = {
    "BertModel": _bert,
    "CamembertModel": _bert,
    "RobertaModel": _bert,
    "XLMRobertaModel": _bert,
    "DistilBertModel": _distilbert,
    "MPNetModel": _mpnet,
    "NomicBertModel": _nomic,
    "ModernBertModel": _modernbert,
    "LlamaModel": _decoder,
    "MistralModel": _decoder,
    "Qwen2Model": _decoder,
    "Qwen3Model": _decoder,
    "Gemma3TextModel": _gemma,
}


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise UnsupportedError(reason)


def _typed_words(embeddings: Any) -> Tensor:
    """The vectors of words with that of the first token type, the only one that a single text has."""
    words = embeddings.word_embeddings.weight
    typed: Tensor = (words.float() + embeddings.token_type_embeddings.weight[0].float()).to(words.dtype)
    return typed


def _post_norm(words: Tensor, positions: Tensor, norm: Any, parts: list[Any], heads: Heads) -> Transformer:
    """``parts``: of each layer the linear modules of queries, keys and values, of the attention's output and its norm,
    of both products of the feed-forward, and its norm."""
    biases = [part[1].bias.float() for part in parts]
    layers = []
    for (attended, out, out_norm, up, down, down_norm), bias, after in zip(
        parts, biases, [*biases[1:], None], strict=True
    ):
        down_bias = down.bias.float()
        layers.append(
            PostNorm(
                Product.of(attended, bias),
                heads,
                out.weight.t(),
                Norm.of(out_norm, down_bias),
                FeedForward(Product.of([up], down_bias), None),
                down.weight.t(),
                Norm.of(down_norm, after),
            )
        )
    return Transformer(words, positions, 1.0, Norm.of(norm, biases[0]), layers, None)


def _heads(count: int, width: int, **more: Any) -> Heads:
    return Heads(count, count, width, more.pop("scale", width**-0.5), **more)


def _decoder_heads(config: Any, attention: Any, rotary: Rotary, norm: Callable[[Any], Norm]) -> Heads:
    if hasattr(attention, "q_norm"):
        queries, keys = norm(attention.q_norm), norm(attention.k_norm)
        rotary = dataclasses.replace(rotary, query_scale=queries.scale, key_scale=keys.scale, epsilon=queries.epsilon)
    # Mistral's attention has none of its own: that of the model holds for all layers.
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    back = None if window is None else window - 1
    return Heads(
        config.num_attention_heads,
        config.num_key_value_heads,
        _head_width(config),
        attention.scaling,
        back,
        0 if attention.is_causal else back,
        rotary,
    )


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _positions(table: Tensor, first: int, longest: int) -> Tensor:
    _require(first + longest <= len(table), f"it has positions for {len(table) - first} tokens, its limit is {longest}")
    return table[first:]


def _rotary(module: Any, prefix: str, width: int, longest: int) -> Rotary:
    """The angles of ``module``, a rotary embedding of transformers, for ``longest`` positions."""
    import torch

    kind = module.rope_type if isinstance(module.rope_type, str) else module.rope_type[prefix.removesuffix("_")]
    _require(kind in ("default", "linear", "llama3", "yarn"), f"its rotation, {kind}, depends on the length of rows")
    frequencies = getattr(module, f"{prefix}inv_freq").float()
    _require(2 * len(frequencies) == width, "it rotates a part of each head")
    factor = getattr(module, f"{prefix}attention_scaling")
    angles = torch.arange(longest, device=frequencies.device)[:, None].float() * frequencies
    return Rotary(angles.cos() * factor, angles.sin() * factor)


def _rms(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon, centred=False)


def _rms_plus_one(module: Any) -> Norm:
    return Norm(1.0 + module.weight.float(), None, module.eps, centred=False)


def _plain(module: Any) -> Tensor:
    """The weight ``[in, out]`` of a linear module whose product is added to the residual."""
    _require(module.bias is None, "it has biases in an unusual place")
    return module.weight.t()


def _require_gelu(activation: str) -> None:
    _require(activation in ("gelu", "gelu_new", "gelu_pytorch_tanh"), f"its activation is {activation}")


def _gated(modules: list[Any], activation: str) -> FeedForward:
    _require(activation in GATES, f"its activation is {activation}")
    return FeedForward(Product.of(modules), GATES[activation])
