"""The training example learns, and learns more from neighbours."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from synthetic_datasets import SIZE, synthetic

from retro_data import open_dataset

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/train_retro.py"


@pytest.fixture
def example() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    found = importlib.util.spec_from_file_location("train_retro", EXAMPLE)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_the_loss_falls_and_is_lower_with_neighbours(example: ModuleType, tmp_path: Path) -> None:
    """Every document has a copy, so the chunk after a neighbour is the chunk to predict."""
    documents, chunks = 2500, 4
    spec = synthetic(tmp_path, [[chunks] * 2 * documents], k=2)
    rng = np.random.default_rng(0)
    tokens = np.repeat(rng.integers(1, 64, (documents, 1, chunks * SIZE)), 2, axis=1).astype(np.uint16)
    np.save(tmp_path / "00/chunks.npy", tokens.reshape(-1, SIZE))
    numbers = np.arange(2 * documents * chunks)
    copies = (numbers // chunks ^ 1) * chunks + numbers % chunks
    np.save(tmp_path / "00/neighbours.npy", np.stack([copies, np.full(len(copies), -1)], axis=1))
    train = open_dataset(str(spec)).train
    torch.set_num_threads(1)  # Other threads would only wait for each other.
    without, with_neighbours = (
        example.train(train, 64, 100, retrieval=retrieval, batch_size=32) for retrieval in (False, True)
    )
    assert np.mean(without[-10:]) < without[0]
    assert np.mean(with_neighbours[-10:]) < np.mean(without[-10:]) - 0.5
