"""What the reader gives against the original's way to read, on shards of every shape."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from original_loader import examples
from synthetic_datasets import SIZE, synthetic
from torch.utils.data import DataLoader

from retro_data import Split, open_dataset
from retro_data.torch import WindowDataset, WindowStream
from retro_ops.errors import BadInputError

SHARDS = st.lists(st.lists(st.integers(1, 7), max_size=5), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("data"), [[3, 1, 9], [], [1], [2, 5, 30, 1]])


@pytest.fixture(scope="module")
def train(spec: Path) -> Split:
    return open_dataset(str(spec)).train


@settings(max_examples=30)
@given(SHARDS, st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
def test_windows_are_the_documents_of_the_original(
    shards: list[list[int]], continuation: int, k: int, length: int, seed: int
) -> None:
    """The first window of a document is the original's example, cut to the same length; the others continue it."""
    with tempfile.TemporaryDirectory() as folder:
        spec = synthetic(Path(folder), shards, seed=seed, queried=max(1, len(shards) - seed % 2))
        windows = open_dataset(str(spec)).train.windows(length)
        made = windows.batch(np.arange(len(windows)), k, continuation)
        cut = examples(spec, k, continuation, max_len=length * SIZE)
        number = 0
        for whole, first in zip(examples(spec, k, continuation), cut, strict=True):
            tokens, neighbours = [], []
            for place in range(-(-len(whole.neighbour_ids) // length)):
                chunks = int(made["chunks"][number])
                ids = {name: made[name][number, : chunks * SIZE] for name in ("input_ids", "labels")}
                near = made["neighbour_ids"][number, :chunks]
                if place == 0:
                    np.testing.assert_array_equal(ids["input_ids"], first.input_ids)
                    np.testing.assert_array_equal(near, first.neighbour_ids)
                    np.testing.assert_array_equal(ids["labels"], first.labels)
                assert not made["input_ids"][number, chunks * SIZE :].any()
                assert (made["labels"][number, chunks * SIZE :] == -100).all()
                assert not made["neighbour_ids"][number, chunks:].any()
                tokens.append(ids["input_ids"])
                neighbours.append(near)
                number += 1
            np.testing.assert_array_equal(np.concatenate(tokens), whole.input_ids)
            np.testing.assert_array_equal(np.concatenate(neighbours), whole.neighbour_ids)
        assert number == len(windows)


def test_rows_by_number_slice_and_list(train: Split, spec: Path) -> None:
    tokens = np.concatenate([np.load(spec.parent / f"{n:02}/chunks.npy") for n in range(4)])
    neighbours = np.concatenate([np.load(spec.parent / f"{n:02}/neighbours.npy") for n in range(4)])
    distances = np.concatenate([np.load(spec.parent / f"{n:02}/distances.npy") for n in range(4)])
    assert (len(train), train.chunk_size, train.num_neighbours) == (52, SIZE, 3)
    for rows in (0, 51, -1, np.int32(13), slice(5, 20, 3), [40, 2, 2], np.array([13, 14]), []):
        found = train[rows]
        at = np.array(rows, np.int64) if isinstance(rows, list) else rows
        np.testing.assert_array_equal(found.tokens, tokens[at])
        np.testing.assert_array_equal(found.neighbours, neighbours[at])
        np.testing.assert_array_equal(found.distances, distances[at])
        assert found.retrieved(2).shape == (*neighbours[at][..., :2].shape, 2 * SIZE)
    with pytest.raises(TypeError, match="not float64"):
        train[[1.5]]
    for rows in (52, -53, [1, 52]):
        with pytest.raises(IndexError, match="train has 52 rows"):
            train[rows]
    embeddings = np.concatenate([np.load(spec.parent / f"{n:02}/embeddings.npy") for n in range(4)])
    for start, stop in ((0, 52), (12, 15), (51, 52)):
        np.testing.assert_array_equal(train.embeddings(start, stop), embeddings[start:stop])


@pytest.mark.parametrize("k", [4, 9, -1])
def test_more_neighbours_than_are_stored_are_refused_wherever_k_is_given(train: Split, k: int) -> None:
    windows = train.windows(4)
    assert windows.batch([0], k=0)["neighbour_ids"].shape[2] == 0
    for ask in (
        lambda: train[0].retrieved(k),
        lambda: train[:0].retrieved(k),
        lambda: windows.batch([0], k=k),
        lambda: WindowDataset(windows, k=k),
        lambda: WindowStream(windows, 2, k=k),
    ):
        with pytest.raises(BadInputError, match=f"k is {k}, but the dataset stores 3 neighbours of each chunk"):
            ask()


def test_a_neighbour_that_the_index_does_not_have_is_an_error(tmp_path: Path) -> None:
    spec = synthetic(tmp_path, [[2, 2]])
    neighbours = np.load(tmp_path / "00/neighbours.npy")
    neighbours[0] = 4
    np.save(tmp_path / "00/neighbours.npy", neighbours)
    with pytest.raises(IndexError, match="there are 4 chunks"):
        open_dataset(str(spec)).train[0].retrieved()


def test_a_split_that_is_absent_is_an_error_that_says_what_to_do(spec: Path) -> None:
    with pytest.raises(BadInputError, match=r"What to do: use dataset.train, or build .*--validation-corpus"):
        _ = open_dataset(str(spec)).val


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    spec = synthetic(tmp_path, [[2, 2], [1]])
    np.save(tmp_path / "01/neighbours.npy", np.zeros((2, 3), np.int64))
    with pytest.raises(BadInputError, match=r"01/neighbours.npy has 2 rows, its shard 1 chunks"):
        open_dataset(str(spec))
    synthetic(tmp_path, [[2, 2], [1]])
    np.save(tmp_path / "01/chunks.npy", np.zeros((1, 2 * SIZE), np.uint16))
    with pytest.raises(BadInputError, match="different sizes"):
        open_dataset(str(spec))
    with pytest.raises(BadInputError, match="is not a dataset"):
        open_dataset(str(tmp_path))


def test_a_loader_of_torch_reads_in_other_processes(train: Split) -> None:
    windows = train.windows(4)
    expected = windows.batch(range(len(windows)))
    loader = DataLoader(WindowDataset(windows), batch_size=5, num_workers=1, multiprocessing_context="spawn")
    found = list(loader)
    for name, array in expected.items():
        np.testing.assert_array_equal(torch.cat([batch[name] for batch in found]), array)
    one = WindowDataset(windows)[3]
    np.testing.assert_array_equal(one["neighbour_ids"], expected["neighbour_ids"][3])
    assert len(pickle.dumps(windows)) < 20_000  # Headers, not arrays.


def test_a_dataset_goes_to_another_process(spec: Path) -> None:
    with open_dataset(str(spec)) as dataset:
        copy = pickle.loads(pickle.dumps(dataset))
        np.testing.assert_array_equal(copy.train[3:9].retrieved(), dataset.train[3:9].retrieved())
