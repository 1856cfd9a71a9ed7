"""Pooling of packed rows gives what the modules of sentence-transformers give for padded ones."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from retro_ops.embedding import pooling
from retro_ops.embedding.model import open_model

LENGTHS = [5, 1, 40, 17]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def tokenizer(model_dir: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


@pytest.mark.parametrize("modes", [*MODES, ("cls", "mean"), ("max", "weightedmean", "lasttoken")])
def test_vectors_are_those_of_sentence_transformers(modes: Any, tokenizer: Any, tmp_path: Path) -> None:
    model = open_model(tiny_models.write(tmp_path, "Bert", tokenizer, modes, dense=24), dimensions=20)
    torch.manual_seed(0)
    hidden = torch.randn((sum(LENGTHS), 48))
    starts = np.concatenate(([0], np.cumsum(LENGTHS)))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with torch.no_grad():
        ends = torch.from_numpy(np.concatenate((starts, [starts[-1]]))).int()
        found = pooling.packed(model, "cpu")(hidden, positions, ends)[: len(LENGTHS)]
        for row, (start, end) in enumerate(itertools.pairwise(starts)):
            features = {
                "token_embeddings": hidden[None, start:end],
                "attention_mask": torch.ones((1, end - start), dtype=torch.int64),
            }
            for module in list(model.network)[1:]:
                features = module(features)
            wanted = torch.nn.functional.normalize(features["sentence_embedding"][:, :20], dim=1)
            torch.testing.assert_close(found[row], wanted[0], atol=1e-5, rtol=1e-4)


def test_what_it_cannot_compute_is_named(tokenizer: Any, tmp_path: Path) -> None:
    model = open_model(tiny_models.write(tmp_path, "Bert", tokenizer))
    assert pooling.refusal(model) is None
    model.network[1].pooling_mode = "median"
    assert pooling.refusal(model) == "it pools by median"
