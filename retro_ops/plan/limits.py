"""What a run cannot do, however long it takes, as `plan` can tell from its estimate. Standard library only."""

from collections.abc import Iterator
from dataclasses import dataclass

from retro_ops.plan.estimate import Index, Work

MOST_CHUNKS = 2**32 - 1
"""Chunks of an index: a hit is a distance and an id of 32 bits each."""

MOST_DOCUMENTS = 2**32 - 1
"""Documents that `find-duplicates` numbers."""

MOST_OBJECT_BYTES = 5 * 2**40
"""Size of an object in S3."""

UNCERTAINTY = 1.1
"""An estimate that exceeds a limit by less may be wrong, so the run goes on."""


@dataclass(frozen=True)
class Exceeded:
    problem: str
    remedy: str
    certain: bool
    """Whether it is exceeded even if the estimate is a tenth too high."""


def exceeded(work: Work, index: Index, finds_duplicates: bool) -> list[Exceeded]:
    """All limits that a run of ``work`` exceeds, by the estimate."""
    return [
        Exceeded(f"{what} {amount:,}, the limit is {most:,}", remedy, amount > most * UNCERTAINTY)
        for what, amount, most, remedy in _amounts(work, index, finds_duplicates)
        if amount > most
    ]


def _amounts(work: Work, index: Index, finds_duplicates: bool) -> Iterator[tuple[str, int, int, str]]:
    """What is limited: its name, its amount, its limit, and what to do."""
    smaller = "divide the corpus into several datasets"
    indexed = max(work.indexed.values())
    yield "chunks of the index: about", indexed, MOST_CHUNKS, f"{smaller}, or index some shards only (--indexed)"
    if finds_duplicates:
        yield "documents to compare: about", work.documents, MOST_DOCUMENTS, f"remove duplicates before, or {smaller}"
    largest = _embedding_bytes(work)
    yield "bytes of the largest shard's embeddings: about", largest, MOST_OBJECT_BYTES, "divide its file"
    merged = _merged_bytes(work, index)
    yield "bytes of the merged index: about", merged, MOST_OBJECT_BYTES, f"choose a smaller index type, or {smaller}"


def largest_object(work: Work, index: Index) -> int:
    """Bytes of the largest object that a run writes: the merged index, or the embeddings or tokens of a shard."""
    tokens = work.largest_shard * work.chunk_size * work.token_bytes
    return max(_merged_bytes(work, index), _embedding_bytes(work), tokens)


def _embedding_bytes(work: Work) -> int:
    return work.largest_shard * work.dimension * 2


def _merged_bytes(work: Work, index: Index) -> int:
    return max(work.indexed.values()) * index.bytes_per_vector
