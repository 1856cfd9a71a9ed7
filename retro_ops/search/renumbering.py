"""Renumbers ids of one index spec to those of another that has some of the same shards."""

import numpy as np
from numpy.typing import NDArray

NONE = -1
GONE = -2
"""Id of a chunk that the other index spec does not have."""


def renumber(ids: NDArray[np.int64], counts: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """``ids`` of any shape in the other numbering; NONE stays, and a chunk of a removed shard becomes GONE.

    ``counts`` int64 ``[s]``: chunks of each shard, in the order of the numbering of ``ids``. ``offsets`` int64 ``[s]``:
    first id of the shard in the other numbering, negative if it was removed. ValueError for an id beyond all shards.
    """
    if ids.size and int(ids.max()) >= int(counts.sum()):
        raise ValueError(f"id {int(ids.max())} is beyond the {int(counts.sum())} chunks of the index spec")
    ends = np.cumsum(counts)
    shard = np.searchsorted(ends, np.maximum(ids, 0), side="right")
    moved = ids + (offsets - (ends - counts))[shard]
    return np.where(ids < 0, NONE, np.where(offsets[shard] < 0, GONE, moved))
