"""Windows: every document cut into runs of at most ``length`` chunks, so that each chunk is in exactly one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_data.arrays import Ids

IGNORED = -100
"""Label of a token that has no successor or is padding: the one that PyTorch's cross entropy ignores."""


@dataclass(frozen=True)
class Starts:
    """The first window of every document of a shard. 4 bytes a document, so that processes can afford it."""

    documents: NDArray[np.int64]
    """First chunk of each document."""
    ends: NDArray[np.uint32]
    """Number of windows up to and with each document."""
    chunks: int

    @classmethod
    def of(cls, seq2chunk: NDArray[np.int64], chunks: int, length: int) -> "Starts":
        counts = np.diff(seq2chunk, append=np.int64(chunks))
        return cls(seq2chunk, np.cumsum(-(-counts // length), dtype=np.int64).astype(np.uint32), chunks)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def spans(self, numbers: Ids, length: int) -> tuple[Ids, Ids]:
        """First chunk and number of chunks of each window."""
        documents = np.searchsorted(self.ends, numbers.astype(np.uint32), side="right")
        before = np.where(documents > 0, self.ends[np.maximum(documents, 1) - 1], 0).astype(np.int64)
        first = self.documents[documents] + (numbers - before) * length
        following = np.minimum(documents + 1, len(self.documents) - 1)
        ends = np.where(documents + 1 < len(self.documents), self.documents[following], self.chunks)
        return first, np.minimum(ends - first, length)


def spans(shards: Sequence[Starts], offsets: Ids, numbers: Ids, length: int) -> tuple[Ids, Ids]:
    """First chunk (of all shards) and number of chunks of each window. ``offsets``: first chunk of each shard."""
    bounds = np.cumsum([0, *map(len, shards)], dtype=np.int64)
    owners = np.searchsorted(bounds, numbers, side="right") - 1
    first, counts = np.empty_like(numbers), np.empty_like(numbers)
    for owner in np.unique(owners):
        of = owners == owner
        first[of], counts[of] = shards[owner].spans(numbers[of] - bounds[owner], length)
        first[of] += offsets[owner]
    return first, counts


def labels(tokens: NDArray[Any], pad_id: int) -> NDArray[np.int64]:
    """Labels ``[n, tokens]``: the token after each one, IGNORED where there is none or it is the pad id."""
    out = np.full(tokens.shape, IGNORED, np.int64)
    following = tokens[:, 1:]
    np.copyto(out[:, :-1], following, where=following != pad_id)
    return out
