"""Whether an index that was trained on earlier chunks still fits those of today."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.index import faiss_index
from retro_ops.index.sampling import sample_rows
from retro_ops.storage.npy import NpyReader

MOST_GROWTH = 2.0
"""Lists go with the root of the number of chunks, so up to here there are nearly as many as auto would choose."""

RETUNE_GROWTH = 1.1
"""With more chunks the same width finds a smaller share of the neighbours."""

RUN_ROWS = 64
SAMPLED_RUNS = 256
"""Rows are sampled in runs, since each is a request to the store: as many whatever the size of the corpus."""


@dataclass(frozen=True)
class Fit:
    """How well the codes and lists of a trained index suit ``vectors`` chunks, measured on ``sample`` of them.

    ``quantisation_error``: mean squared distance from what the codes say, in shares of the squared length; None if
    faiss cannot decode them. ``imbalance``: cost of probing a list, as a multiple of that with equal lists.
    """

    vectors: int
    sample: int
    quantisation_error: float | None
    imbalance: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sample_runs(counts: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """First rows of the runs to read, for each shard with ``counts`` rows: uniform over all runs."""
    runs = sample_rows(-(-counts // RUN_ROWS), SAMPLED_RUNS, seed)
    return [numbers * RUN_ROWS for numbers in runs]


def fit(trained: Any, runs: Sequence[NDArray[np.float16]], vectors: int) -> Fit:
    """Of ``trained``, which is empty and is filled here; ``runs``, each ``[n, d]``, stand for ``vectors`` chunks."""
    sample = np.concatenate(runs)
    error = faiss_index.quantisation_error(trained, sample)
    trained.add(np.ascontiguousarray(sample, np.float32))
    run = np.repeat(np.arange(len(runs)), [len(rows) for rows in runs])
    spread = imbalance(faiss_index.list_numbers(trained), run, faiss_index.list_count(trained))
    return Fit(vectors, len(sample), error, spread)


def imbalance(numbers: NDArray[np.int64], runs: NDArray[np.int64], lists: int) -> float:
    """Of the ``lists`` lists that a sample was drawn from: int64 ``[n]`` the list and the run of each of it.

    ``lists * sum(p_i^2)``, where the chance that two of the sample lie in one list stands for the sum, as the plain
    imbalance factor of a small sample is too high. Only two of different runs count: neighbours in a document lie
    in one list whatever the others do.
    """
    pairs = _pairs(numbers) - _pairs(runs * lists + numbers)
    among = float(len(numbers)) * (len(numbers) - 1) - _pairs(runs)
    return lists * pairs / among if among else 1.0


def _pairs(of: NDArray[np.int64]) -> float:
    """Ordered pairs of equal values."""
    counts = np.unique(of, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum())


def reason_to_retrain(then: Fit, now: Fit, most: float) -> str | None:
    """Why the index should be trained again; None when it need not. ``most``: share by which a figure may rise."""
    if now.vectors > MOST_GROWTH * then.vectors:
        return f"it was trained for {then.vectors:,} chunks, and there are {now.vectors:,}"
    if (
        then.quantisation_error
        and now.quantisation_error
        and now.quantisation_error > (1 + most) * then.quantisation_error
    ):
        return f"its quantisation error has risen from {then.quantisation_error:.4f} to {now.quantisation_error:.4f}"
    if now.imbalance > (1 + most) * max(1.0, then.imbalance):
        return f"the imbalance of its lists has risen from {then.imbalance:.2f} to {now.imbalance:.2f}"
    return None


def measure(trained: Any, shards: Sequence[NpyReader], seed: int) -> Fit:
    """Of ``trained``, which is empty and is filled with a sample of the embeddings ``shards``."""
    counts = np.array([len(shard) for shard in shards], np.int64)
    firsts = sample_runs(counts, seed)
    parts = [
        shard.rows(first, first + RUN_ROWS) for shard, of in zip(shards, firsts, strict=True) for first in of.tolist()
    ]
    return fit(trained, [part.astype(np.float16) for part in parts], int(counts.sum()))
