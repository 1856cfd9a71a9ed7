"""Uniform samples of rows over many shards."""

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
