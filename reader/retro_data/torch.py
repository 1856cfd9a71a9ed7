"""PyTorch datasets of windows. Needs torch, which nothing else of this package imports."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from retro_data import order
from retro_data.arrays import Ids
from retro_data.split import Windows
from retro_ops.errors import BadInputError

Batch = dict[str, Any]
"""``input_ids``, ``neighbour_ids``, ``labels`` and ``chunks`` as tensors, see ``Windows.batch``."""

STATE_FORMAT = 1


class WindowDataset(Dataset[Batch]):  # type: ignore[misc]
    """Map-style: item ``i`` is window ``i``. A DataLoader's batch is looked up at once (``__getitems__``)."""

    def __init__(self, windows: Windows, k: int | None = None, continuation: int = 1) -> None:
        windows.split.check_k(k)
        self._windows, self._k, self._continuation = windows, k, continuation

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> Batch:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Batch]:
        batch = _tensors(self._windows.batch(numbers, self._k, self._continuation))
        return [{name: of[place] for name, of in batch.items()} for place in range(len(numbers))]


class WindowStream(IterableDataset[Batch]):  # type: ignore[misc]
    """The batches of one rank, in an order that follows from (seed, epoch) alone.

    Each step takes the next ``batch_size * ranks`` windows of that order, divided among the ranks, so an epoch has
    each window exactly once on any number of ranks and of DataLoader workers. Use it with ``batch_size=None``:
    ``DataLoader(stream, batch_size=None, num_workers=4)``. The last step has fewer windows, and some ranks may have no
    batch in it, unless ``drop_last``.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        k: int | None = None,
        continuation: int = 1,
        drop_last: bool = False,
    ) -> None:
        if not (batch_size >= 1 and 0 <= rank < ranks):
            raise BadInputError(f"rank {rank} of {ranks}, batches of {batch_size}", "count ranks from 0")
        windows.split.check_k(k)
        self._windows, self._batch_size, self._seed = windows, batch_size, seed
        self._rank, self._ranks, self._drop_last = rank, ranks, drop_last
        self._k, self._continuation = k, continuation
        self._epoch = self._position = 0

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` from its first window, once the DataLoader is iterated next. Its workers must not persist
        (``persistent_workers``), since they keep the epoch that they were started with."""
        self._epoch, self._position = epoch, 0

    def state_dict(self, after: Mapping[str, Any]) -> dict[str, Any]:
        """The state after the step of the batch ``after``: the same for all ranks of that step.

        The batch is named because a DataLoader's workers are ahead of the training.
        """
        return {
            **self._identity(),
            "seed": self._seed,
            "epoch": int(after["epoch"]),
            "position": int(after["position"]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the step of ``state``, on any number of ranks and workers, with any batch size.

        Raises BadInputError if the state is of other windows: another version, split or length.
        """
        own = self._identity()
        if different := [name for name, value in own.items() if state.get(name) != value]:
            name = different[0]
            raise BadInputError(
                f"the state is of other windows: {name} is {state.get(name)!r} there and {own[name]!r} here",
                "open the version, split and window length of the run that wrote the state",
            )
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        for step, (positions, end) in enumerate(self._steps()):
            # A DataLoader takes batches from its workers in turn, so this restores the order of the steps.
            if step % workers == number and len(positions):
                numbers = order.shuffled(positions, len(self._windows), self._seed, self._epoch)
                batch = _tensors(self._windows.batch(numbers, self._k, self._continuation))
                yield {**batch, "window": torch.from_numpy(numbers), "epoch": self._epoch, "position": end}

    def __len__(self) -> int:
        """Batches that are left in this epoch."""
        together = self._batch_size * self._ranks
        whole, rest = divmod(max(0, len(self._windows) - self._position), together)
        last = order.steps(rest, self._batch_size, self._rank, self._ranks, drop_last=self._drop_last)
        return whole + sum(len(positions) > 0 for positions, _ in last)

    def _identity(self) -> dict[str, Any]:
        """What the positions in a state refer to."""
        split, length = self._windows.split, self._windows.length
        return {"format": STATE_FORMAT, "split": split.name, "rows": split.fingerprint, "length": length}

    def _steps(self) -> Iterator[tuple[Ids, int]]:
        return order.steps(
            len(self._windows), self._batch_size, self._rank, self._ranks, self._position, drop_last=self._drop_last
        )


def _tensors(batch: Mapping[str, np.ndarray[Any, Any]]) -> Batch:
    return {name: torch.from_numpy(array) for name, array in batch.items()}
