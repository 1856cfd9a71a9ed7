"""Measures whether an index that was trained on earlier chunks still fits the current ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.index import faiss_index
from retro_ops.index.sampling import RUN_ROWS, sample_rows
from retro_ops.storage import read_ahead
from retro_ops.storage.npy import NpyReader

MOST_GROWTH = 2.0
"""Growth of the corpus up to which an index is kept. `auto` makes the number of lists grow with the root of the number
of chunks, so up to here it would choose nearly the same."""

RETUNE_GROWTH = 1.1
"""Growth from which the search is tuned again: with more chunks the same width finds fewer of the neighbours."""

SAMPLED_RUNS = 256
"""Rows are sampled in runs, because each run is a request to the store. Their number does not depend on the corpus."""


@dataclass(frozen=True)
class Fit:
    """Fit of the codes and lists of a trained index to ``vectors`` chunks, measured on ``sample`` of them.

    ``quantisation_error``: mean squared distance from the decoded vectors, as a share of the squared length; None if
    faiss cannot decode them. ``imbalance``: cost of probing a list, as a multiple of the cost with equal lists.
    """

    vectors: int
    sample: int
    quantisation_error: float | None
    imbalance: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sample_runs(counts: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """First rows of a uniform sample of runs, for each shard; ``counts`` int64 ``[s]``: rows of the shards."""
    runs = sample_rows(-(-counts // RUN_ROWS), SAMPLED_RUNS, seed)
    return [numbers * RUN_ROWS for numbers in runs]


def fit(trained: Any, runs: Sequence[NDArray[np.float16]], vectors: int) -> Fit:
    """The fit of ``trained``, an empty index that is filled here, to a sample of ``vectors`` chunks: ``runs``, each
    ``[n, d]``."""
    sample = np.concatenate(runs)
    error = faiss_index.quantisation_error(trained, sample)
    trained.add(np.ascontiguousarray(sample, np.float32))
    run = np.repeat(np.arange(len(runs)), [len(rows) for rows in runs])
    spread = imbalance(faiss_index.list_numbers(trained), run, faiss_index.list_count(trained))
    return Fit(vectors, len(sample), error, spread)


def imbalance(numbers: NDArray[np.int64], runs: NDArray[np.int64], lists: int) -> float:
    """Imbalance of ``lists`` lists, from a sample: ``numbers`` and ``runs`` int64 ``[n]``, list and run of each vector.

    It is ``lists * sum(p_i^2)``, with ``p_i`` the share of list i. The sum is estimated by the chance that two vectors
    of the sample share a list, because the plain imbalance factor of a small sample is too high. Only pairs of
    different runs count: vectors of one document tend to share a list in any case.
    """
    pairs = _pairs(numbers) - _pairs(runs * lists + numbers)
    among = float(len(numbers)) * (len(numbers) - 1) - _pairs(runs)
    return lists * pairs / among if among else 1.0


def _pairs(of: NDArray[np.int64]) -> float:
    """Ordered pairs of equal values."""
    counts = np.unique(of, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1)).sum())


def reason_to_retrain(then: Fit, now: Fit, most: float) -> str | None:
    """The reason to train the index again, None if there is none. ``most``: share by which a figure may rise."""
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
    """The fit of ``trained`` to the embeddings ``shards``. It is empty, and a sample of them is added to it."""
    counts = np.array([len(shard) for shard in shards], np.int64)
    firsts = sample_runs(counts, seed)
    reads = (
        (RUN_ROWS * shard.row_bytes, partial(shard.rows, first, first + RUN_ROWS))
        for shard, of in zip(shards, firsts, strict=True)
        for first in of.tolist()
    )
    return fit(trained, [part.astype(np.float16) for part in read_ahead.ahead(reads)], int(counts.sum()))
