"""From the hidden states of packed rows to one vector a row, as the modules of sentence-transformers do."""

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

from retro_ops.compute.fp16_scores import Tensor
from retro_ops.embedding.model import Model

Pool: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden state ``[tokens, d]``, positions in the row ``[tokens]``, starts ``[rows + 1]``) -> ``[rows, dimension]``.

``tokens`` is the end of the last row. Rows may be empty at the end; their vectors are undefined.
"""

AFTER_POOLING = ("Dense", "LayerNorm", "Normalize", "Dropout")


def refusal(model: Model) -> str | None:
    """The reason why ``packed`` cannot compute what follows the layers of ``model``, None if there is none."""
    first, *others = model.modules
    if first != "Transformer" or model.transformer is None:
        return f"its first module is {first}"
    if not others or others[0] != "Pooling" or not set(others[1:]) <= set(AFTER_POOLING):
        return f"its modules are {', '.join(model.modules)}"
    unknown = [mode for mode in _modes(model.network[1]) if mode not in _POOLED]
    if unknown:
        return f"it pools by {unknown[0]}"
    return None


def is_plain_mean(model: Model) -> bool:
    """Whether a vector has the direction of the sum over all tokens of a row."""
    _, *after = model.modules
    return after in (["Pooling"], ["Pooling", "Normalize"]) and _modes(model.network[1]) == ("mean",)


def packed(model: Model, where: str) -> Pool:
    """What follows the layers of ``model``, on the device ``where``: pooling, further modules and L2 normalisation."""
    import torch

    modes = _modes(model.network[1])
    after = [copy.deepcopy(module).float().to(where) for module in list(model.network)[2:]]

    def pool(hidden: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
        features = {
            "sentence_embedding": torch.cat([_POOLED[mode](hidden, positions, starts) for mode in modes], 1).float()
        }
        for module in after:
            features = module(features)
        kept = features["sentence_embedding"][:, : model.dimension]
        return torch.nn.functional.normalize(kept, dim=1)

    return pool


def _modes(module: Any) -> tuple[str, ...]:
    return (module.pooling_mode,) if isinstance(module.pooling_mode, str) else tuple(module.pooling_mode)


def _bags(hidden: Tensor, starts: Tensor, mode: str, weights: Tensor | None = None) -> Tensor:
    """Reduces each row."""
    import torch

    every = torch.arange(len(hidden), dtype=torch.int32, device=hidden.device)
    return torch.nn.functional.embedding_bag(
        every, hidden, starts, mode=mode, per_sample_weights=weights, include_last_offset=True
    )


def _cls(hidden: Tensor, _: Tensor, starts: Tensor) -> Tensor:
    return hidden[starts[:-1].clamp(max=len(hidden) - 1)]


def _last(hidden: Tensor, _: Tensor, starts: Tensor) -> Tensor:
    return hidden[(starts[1:] - 1).clamp(min=0)]


def _mean(hidden: Tensor, _: Tensor, starts: Tensor) -> Tensor:
    return _bags(hidden, starts, "mean")


def _mean_sqrt(hidden: Tensor, _: Tensor, starts: Tensor) -> Tensor:
    lengths = (starts[1:] - starts[:-1]).clamp(min=1)
    return _bags(hidden, starts, "mean").float() * lengths.float().sqrt()[:, None]


def _max(hidden: Tensor, _: Tensor, starts: Tensor) -> Tensor:
    return _bags(hidden, starts, "max")


def _weighted(hidden: Tensor, positions: Tensor, starts: Tensor) -> Tensor:
    """Each token weighs its position, counted from 1. Weights are divided first, so that half precision holds sums."""
    lengths = (starts[1:] - starts[:-1]).clamp(min=1).float()
    row = (positions == 0).cumsum(0) - 1
    total = (lengths * (lengths + 1) / 2)[row.clamp(max=len(lengths) - 1)]
    return _bags(hidden, starts, "sum", ((positions + 1).float() / total).to(hidden.dtype))


_POOLED: dict[str, Pool] = {
    "cls": _cls,
    "lasttoken": _last,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "max": _max,
    "weightedmean": _weighted,
}
