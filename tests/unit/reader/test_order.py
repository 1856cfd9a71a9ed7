"""The order of an epoch, and its division among ranks and workers."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_datasets import synthetic
from torch.utils.data import DataLoader, _utils

from retro_data import Windows, open_dataset, order
from retro_data.torch import Batch, WindowStream
from retro_ops.errors import BadInputError

RANKS = st.integers(1, 8)


@given(st.integers(0, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_an_order_has_each_number_once_and_no_other_epoch_has_it(count: int, seed: int, epoch: int) -> None:
    found = order.shuffled(np.arange(count), count, seed, epoch)
    np.testing.assert_array_equal(np.sort(found), np.arange(count))
    if count > 20:
        assert (found != order.shuffled(np.arange(count), count, seed, epoch + 1)).any()
        np.testing.assert_array_equal(found[7:11], order.shuffled(np.arange(7, 11), count, seed, epoch))


def test_an_order_is_random() -> None:
    count = 100_000
    found = order.shuffled(np.arange(count), count, 1, 0)
    assert abs(np.corrcoef(np.arange(count), found)[0, 1]) < 0.01
    steps = np.diff(found)
    assert abs((steps > 0).mean() - 0.5) < 0.01
    buckets = np.bincount(found[:10_000] // 1000, minlength=100)
    assert ((buckets > 50) & (buckets < 150)).all()


@settings(max_examples=200)
@given(st.integers(0, 300), st.integers(1, 9), RANKS, st.integers(1, 9), RANKS, st.integers(0, 50))
def test_each_position_is_taken_once_also_when_resumed_on_other_ranks(
    count: int, size: int, ranks: int, other_size: int, other_ranks: int, stop: int
) -> None:
    taken: list[int] = []
    ends = [end for _, end in order.steps(count, size, 0, ranks)][:stop]
    for rank in range(ranks):
        for positions, _ in list(order.steps(count, size, rank, ranks))[:stop]:
            taken += positions.tolist()
            assert len(positions) <= size
    position = ends[-1] if ends else 0
    assert sorted(taken) == list(range(position))
    for rank in range(other_ranks):
        for positions, _ in order.steps(count, other_size, rank, other_ranks, position):
            taken += positions.tolist()
    assert sorted(taken) == list(range(count))


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Windows]:
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(1)
        spec = synthetic(Path(folder), [rng.integers(1, 12, 40).tolist() for _ in range(3)])
        yield open_dataset(str(spec)).train.windows(4)


def as_worker(stream: WindowStream, number: int, workers: int) -> list[Batch]:
    """The batches of one worker of a DataLoader, without its process."""
    info = _utils.worker.WorkerInfo(id=number, num_workers=workers, seed=0, dataset=stream)
    _utils.worker._worker_info = info
    try:
        return list(stream)
    finally:
        _utils.worker._worker_info = None


def of_rank(stream: WindowStream, workers: int) -> list[Batch]:
    """The batches of a rank, from its workers in turn, as a DataLoader takes them."""
    lists = [as_worker(stream, number, workers) for number in range(workers)]
    return [lists[step % workers][step // workers] for step in range(sum(map(len, lists)))]


@settings(max_examples=10)
@given(st.integers(0, 99), st.integers(0, 3), st.integers(0, 6))
def test_eight_ranks_of_four_workers_see_each_window_once_and_three_ranks_continue(
    windows: Windows, seed: int, epoch: int, stop: int
) -> None:
    """The sequence of windows is that of one rank with one worker; the tensors too."""
    alone = WindowStream(windows, 1, seed=seed)
    alone.set_epoch(epoch)
    sequence = [int(number) for batch in alone for number in batch["window"]]
    assert sorted(sequence) == list(range(len(windows)))
    before, states = [], []
    for rank in range(8):
        stream = WindowStream(windows, 2, seed=seed, rank=rank, ranks=8)
        stream.set_epoch(epoch)
        batches = of_rank(stream, 4)[:stop]
        before += [int(number) for batch in batches for number in batch["window"]]
        states += [stream.state_dict(after=batches[-1])] if batches else []
    assert all(state == states[0] for state in states)
    done = states[0]["position"] if states else 0
    assert sorted(before) == sorted(sequence[:done])
    after = []
    for rank in range(3):
        stream = WindowStream(windows, 3, seed=seed, rank=rank, ranks=3)
        if states:
            stream.load_state_dict(states[0])
        else:
            stream.set_epoch(epoch)
        assert len(of_rank(stream, 2)) == len(stream)
        after.append([batch["window"].tolist() for batch in of_rank(stream, 2)])
    steps = [number for parts in itertools.zip_longest(*after, fillvalue=()) for part in parts for number in part]
    rest = sequence[done:]
    whole = len(rest) - len(rest) % 9
    assert steps[:whole] == rest[:whole]
    assert sorted(steps) == sorted(rest)


def test_a_loader_of_torch_keeps_the_order_and_its_state_is_that_of_the_last_batch_used(windows: Windows) -> None:
    def stream(**of_rank: int) -> WindowStream:
        return WindowStream(windows, 4, seed=3, k=2, **of_rank)

    whole = [batch["window"].tolist() for batch in stream()]
    loaded = DataLoader(stream(), batch_size=None, num_workers=2)
    assert len(loaded) == len(whole)
    used = []
    source = iter(loaded)
    for _ in range(5):
        batch = next(source)  # Its workers are further.
        used.append(batch["window"].tolist())
    assert used == whole[:5]
    resumed = stream()
    resumed.load_state_dict(stream().state_dict(after=batch))
    assert [batch["window"].tolist() for batch in resumed] == whole[5:]
    assert sum(len(batch["window"]) for batch in WindowStream(windows, 4, drop_last=True)) == len(windows) // 4 * 4
    other = WindowStream(windows.split.windows(5), 4)
    with pytest.raises(BadInputError, match="length is 4 there and 5 here"):
        other.load_state_dict(stream().state_dict(after=batch))
