"""How well a trained index fits embeddings in the store."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from retro_ops.index import drift
from retro_ops.storage.npy import NpyReader


def measure(trained: Any, shards: Sequence[NpyReader], seed: int) -> drift.Fit:
    """Of ``trained``, which is empty and is filled with a sample of the embeddings ``shards``."""
    counts = np.array([len(shard) for shard in shards], np.int64)
    firsts = drift.sample_runs(counts, seed)
    parts = [
        shard.rows(first, first + drift.RUN_ROWS)
        for shard, of in zip(shards, firsts, strict=True)
        for first in of.tolist()
    ]
    return drift.fit(trained, [part.astype(np.float16) for part in parts], int(counts.sum()))
