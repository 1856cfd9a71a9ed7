"""Our layers compute what transformers' do; kernels, which need a GPU (tests/gpu), are played by torch."""

import itertools
import sys
import types

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from retro_ops import embedding
from retro_ops.embedding import bert


def _attend(qkv: torch.Tensor, starts: torch.Tensor, heads: int) -> torch.Tensor:
    found = torch.zeros((len(qkv), qkv.shape[1] // 3))
    for start, end in zip(starts.tolist(), starts[1:].tolist(), strict=False):
        q, k, v = qkv[start:end].reshape(end - start, 3, heads, -1).permute(1, 2, 0, 3)
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        found[start:end] = attended.transpose(0, 1).reshape(end - start, -1)
    return found


def _normalise(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x.copy_(torch.nn.functional.layer_norm(x, scale.shape, scale, shift, epsilon))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BertModel:
    """A model with random weights, including biases and norms, as in a trained one."""
    kernels = types.ModuleType("retro_ops.embedding.kernels")
    vars(kernels).update(attend=_attend, normalise=_normalise)
    monkeypatch.setitem(sys.modules, "retro_ops.embedding.kernels", kernels)
    monkeypatch.setattr(embedding, "kernels", kernels, raising=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    made = BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


@torch.no_grad()
def test_hidden_states_are_those_of_transformers(model: BertModel) -> None:
    lengths = [5, 1, 40, 17]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    ids = torch.randint(100, (int(starts[-1]),))
    positions = torch.cat([torch.arange(length) for length in lengths])
    found = bert.Bert.of(model)(ids, positions, torch.from_numpy(starts))
    for start, end in itertools.pairwise(starts):
        wanted = model(input_ids=ids[None, start:end]).last_hidden_state[0]
        torch.testing.assert_close(found[start:end], wanted, atol=3e-3, rtol=3e-3)


def test_only_what_it_computes_is_taken_for_bert(model: BertModel) -> None:
    assert bert.is_bert(model)
    model.config.hidden_act = "relu"
    assert not bert.is_bert(model)
    small = RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert not bert.is_bert(RobertaModel(small))
