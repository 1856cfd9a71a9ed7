"""Our layers compute what transformers' do; kernels, which need a GPU (tests/gpu), are replaced by plain torch."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import reference_kernels
import tiny_models
import torch
import transformers

from retro_ops import embedding
from retro_ops.embedding import architectures

LENGTHS = [5, 1, 40, 17]


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "retro_ops.embedding.kernels", reference_kernels)
    monkeypatch.setattr(embedding, "kernels", reference_kernels, raising=False)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(name: str) -> None:
    model = tiny_models.transformer(name)
    starts = np.concatenate(([0], np.cumsum(LENGTHS)))
    ids = torch.randint(2, 100, (int(starts[-1]),))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    found = architectures.packed_layers(model, 60)(ids, positions, torch.from_numpy(starts))
    for start, end in itertools.pairwise(starts):
        wanted = model(input_ids=ids[None, start:end]).last_hidden_state[0]
        torch.testing.assert_close(found[start:end], wanted, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("Bert", {"hidden_act": "relu"}, "its activation is relu"),
        ("Bert", {"is_decoder": True}, "it is a decoder"),
        ("Roberta", {"max_position_embeddings": 40}, "positions for 38 tokens"),
        ("Llama", {"hidden_act": "relu"}, "its activation is relu"),
        ("Llama", {"attention_bias": True}, "biases"),
        ("Gemma3Text", {"attn_logit_softcapping": 50.0}, "caps its scores"),
    ],
)
def test_models_that_the_layers_do_not_compute_are_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(architectures.UnsupportedError, match=reason):
        architectures.packed_layers(tiny_models.transformer(name, **settings), 60)


def test_an_unknown_model_is_refused() -> None:
    config = transformers.AlbertConfig(vocab_size=100, **tiny_models.BERT)
    with pytest.raises(architectures.UnsupportedError, match="AlbertModel"):
        architectures.packed_layers(transformers.AlbertModel(config), 60)
