"""Samples of rows over many shards: row by row, or in runs of consecutive rows, which take fewer bytes to read."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def sample_rows(counts: NDArray[np.int64], wanted: int, seed: int) -> list[NDArray[np.int64]]:
    """A uniform sample without replacement of ``wanted`` rows over shards of ``counts`` rows.

    Returns row numbers (int64, ascending) for each shard: all rows if ``wanted`` is at least their number. Memory is
    proportional to the sample: first the share of each shard is drawn (multivariate hypergeometric, so that the sample
    is exactly uniform), then the rows within the shard.
    """
    rng = np.random.default_rng(seed)
    if wanted >= counts.sum():
        return [np.arange(count, dtype=np.int64) for count in counts]
    shares = rng.multivariate_hypergeometric(counts, wanted, method="marginals")
    return [
        np.sort(rng.choice(count, share, replace=False, shuffle=False)).astype(np.int64)
        for count, share in zip(counts.tolist(), shares.tolist(), strict=True)
    ]


RUN_ROWS = 64
"""Most rows of a run. With 384 dimensions it is a request of 48 KiB; shorter ones would cost nearly as much."""

LEAST_RUNS = 8192
"""A smaller sample is of shorter runs: rows of one document resemble each other, so few long runs tell little."""


def sample_in_runs(counts: NDArray[np.int64], wanted: int, seed: int) -> list[NDArray[np.int64]]:
    """A sample without replacement of ``wanted`` rows over shards of ``counts`` rows, in runs of consecutive rows.

    Returns row numbers (int64, ascending) for each shard: all rows if ``wanted`` is at least their number. Every row is
    as likely as any other; rows of one run come together:

    1. The rows of all shards are numbered through and cut into runs of ``run_rows``.
    2. Runs are drawn uniformly, one more than necessary, since the last one may be short.
    3. The rows beyond ``wanted`` are dropped uniformly.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if wanted >= total:
        return [np.arange(count, dtype=np.int64) for count in counts]
    rng = np.random.default_rng(seed)
    length = run_rows(wanted)
    runs = -(-total // length)
    drawn = np.sort(rng.choice(runs, min(runs, -(-wanted // length) + 1), replace=False, shuffle=False))
    rows = (drawn.astype(np.int64)[:, None] * length + np.arange(length)).reshape(-1)
    rows = rows[rows < total]
    rows = np.delete(rows, rng.choice(len(rows), len(rows) - wanted, replace=False, shuffle=False))
    of_shards = np.split(rows, np.searchsorted(rows, ends[:-1]))
    return [of - (end - count) for of, end, count in zip(of_shards, ends, counts, strict=True)]


def run_rows(wanted: int) -> int:
    """Rows of each run of a sample of ``wanted`` rows."""
    return max(1, min(RUN_ROWS, wanted // LEAST_RUNS))


def ranges(rows: NDArray[np.int64], gap: int, most_rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) in ``rows`` (ascending) of those to read together: gaps of up to ``gap`` rows between them are read
    along, up to ``most_rows`` rows from the first to the last."""
    start = 0
    for end in [*(np.flatnonzero(np.diff(rows) > gap + 1) + 1).tolist(), len(rows)]:
        while start < end:
            stop = int(np.searchsorted(rows, rows[start] + most_rows))
            yield start, min(stop, end)
            start = min(stop, end)
