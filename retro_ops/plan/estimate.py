"""Estimates bytes, peak memory and seconds of each stage from the number of chunks.

The rates were measured with this package on 2 server cores and on one H100 (docs/benchmarks.md). On other machines they
are a first guess; the dataset card shows them next to the measured values. Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from retro_ops import memory
from retro_ops.plan import documents
from retro_ops.plan.sample_parts import is_large
from retro_ops.plan.stage_graph import STAGES

MIB = 2**20

TOKENIZED_PER_SECOND = 13_300.0
TEXTS_PER_SECOND = 11_300.0
"""Chunks that one core decodes and encodes again, as `embed-chunks` does with text, while a GPU embeds others."""

MERGED_PER_SECOND = 2_600_000.0
"""Of an index read list by list, by one core."""


@dataclass(frozen=True)
class Rates:
    """Work per second of one device. All rates but ``embedded`` count pairs of vectors whose distance is computed."""

    embedded: float
    """Multiplications and additions in the layers of the model, from the store to the store."""
    assigned: float
    """Vector and centroid (of a list or a code) while an index is filled."""
    trained: float
    """Vector and centroid while an index is trained; lists take 10 rounds."""
    compared: float
    """Exact search in vectors that are in memory."""
    read: float
    """Exact search in vectors that are read from the store."""
    scanned: float
    """Search in probed lists, including the exact distances of the candidates."""
    has_trials: bool
    """Whether tuning searches the index for each number of lists; a GPU ranks lists instead."""


RATES = {
    "cpu": Rates(
        embedded=2.7e11,
        assigned=3.0e7,
        trained=2.0e8,
        compared=5.5e7,
        read=5.5e7,
        scanned=3.1e7,
        has_trials=True,
    ),
    "cuda": Rates(
        embedded=2.7e14,
        assigned=6.0e10,
        trained=2.1e11,
        compared=7.8e10,
        read=8.0e8,
        scanned=3.0e10,
        has_trials=False,
    ),
}
"""``cpu``: 2 cores; ``cuda``: one H100."""

USUAL_MODEL_BYTES = 90_000_000
"""Weights of all-MiniLM-L6-v2, with which the memory of `embed-chunks` was measured."""

VALIDATED_PER_SECOND = 350_000.0

PROBED_LISTS = 64
MOST_PROBED = 1 / 16
"""Lists probed for the default target recall, and their largest share of all, measured on 244,970 chunks."""

CANDIDATE_BYTES = 48
CANDIDATES = 64


@dataclass(frozen=True)
class Index:
    """The size of an index."""

    lists: int
    bytes_per_vector: int
    """Code and id."""
    training_vectors: int
    """Number of vectors that it is trained on."""


@dataclass(frozen=True)
class Work:
    """The amount of work of a run. Fields without a description are those of ``Parameters``."""

    chunks: Mapping[str, int]
    """By split."""
    documents: int
    shards: int
    largest_shard: int
    """Chunks of the largest shard."""
    chunk_size: int
    chunk_operations: float
    """Multiplications and additions of the model for a chunk."""
    model_bytes: int
    """Size of the model's weights in float32."""
    token_bytes: int
    dimension: int
    num_neighbours: int
    recall_sample: int
    memory_budget: int
    corpus_bytes: int = 0
    """Size of the corpus as it is stored."""

    @property
    def total(self) -> int:
        return sum(self.chunks.values())

    @property
    def indexed(self) -> dict[str, int]:
        """Vectors in the index of each split. The validation index also holds the training chunks."""
        return {split: count if split == "train" else self.total for split, count in self.chunks.items()}


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run."""

    chunks: dict[str, int]
    """By split, and ``all``."""
    bytes: dict[str, int]
    """Stored bytes by stage."""
    peak_rss_bytes: dict[str, int]
    """Peak memory of a task by stage."""
    seconds: dict[str, dict[str, float]]
    """By device and stage, for one worker that does all tasks one after the other."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(work: Work, index: Index) -> Estimate:
    """The estimate of all stages for ``work`` with ``index``."""
    total, vector = work.total, index.bytes_per_vector
    return Estimate(
        chunks={**work.chunks, "all": total},
        bytes={
            # Per chunk: tokens, document number and identity. Per document: first chunk and sidecar line.
            "tokenize-and-chunk": total * (work.chunk_size * work.token_bytes + 12) + work.documents * 40,
            "embed-chunks": total * work.dimension * 2,
            "train-faiss-index": _centroids(work, index),
            "build-faiss-index": total * vector + work.shards * _centroids(work, index),
            "merge-indexes": sum(work.indexed.values()) * vector + len(work.chunks) * _centroids(work, index),
            "retrieve-neighbours": total * work.num_neighbours * 12,
        },
        peak_rss_bytes={
            stage.name: stage.base_memory_mib * MIB + _growing(stage.name, work, index)
            for stage in STAGES.values()
            if stage.base_memory_mib
        },
        seconds={device: _seconds(work, index, rates) for device, rates in RATES.items()},
    )


def cores_per_gpu(work: Work) -> int:
    """Cores that prepare text as fast as one GPU embeds it: a process each, and two for the stage itself."""
    return math.ceil(RATES["cuda"].embedded / work.chunk_operations / TEXTS_PER_SECOND) + 2


class _Document(TypedDict):
    chunks: dict[str, int]
    bytes: dict[str, int]
    peak_rss_bytes: dict[str, int]
    seconds: dict[str, dict[str, float]]


def read_estimate(data: bytes, uri: str) -> dict[str, Any]:
    """The estimate of a plan as JSON. BadInputError if it is none."""
    return dict(documents.read(data, uri, _Document, "delete it: it is shown and used for nothing else"))


def scaled(samples: Sequence[tuple[int, float, int]], total_bytes: int) -> int:
    """Extrapolate a count to ``total_bytes`` from samples (bytes of a file, share read, count in that share)."""
    read = sum(size * share for size, share, _ in samples)
    return round(sum(count for _, _, count in samples) * total_bytes / read) if read else 0


def _seconds(work: Work, index: Index, rates: Rates) -> dict[str, float]:
    total, in_indexes = work.total, sum(work.indexed.values())
    pairs = work.recall_sample * in_indexes
    scanned = sum(work.chunks[split] * held for split, held in work.indexed.items())
    scanned_share = min(MOST_PROBED, PROBED_LISTS / index.lists) if index.lists > 1 else 1.0
    # Truth of the samples, in which every vector counts, then trials of 1, 2, 4, … lists, twice the index together.
    trials = pairs * 2 / rates.scanned if rates.has_trials else 0
    large = is_large(total)
    took = {
        "tokenize-and-chunk": total / TOKENIZED_PER_SECOND,
        "embed-chunks": total * work.chunk_operations / rates.embedded,
        "train-faiss-index": index.training_vectors * index.lists * 10 / rates.trained if index.lists > 1 else 0,
        "build-faiss-index": total * (index.lists + 256) / rates.assigned if index.lists > 1 else 0,
        "merge-indexes": in_indexes / MERGED_PER_SECOND,
        "search-samples": 2 * pairs / rates.compared if large else 0,
        "tune-search": trials + (0 if large else pairs / rates.compared),
        "retrieve-neighbours": scanned * scanned_share / rates.scanned,
        "validate-shards": total / VALIDATED_PER_SECOND if large else 0,
        "describe": 0 if large else pairs / rates.read,
        "validate": 0 if large else total / VALIDATED_PER_SECOND,
    }
    return {
        stage: round(seconds + STAGES[stage].start_s * (work.shards if STAGES[stage].maps_over == "shard" else 1), 1)
        for stage, seconds in took.items()
    }


def _growing(stage: str, work: Work, index: Index) -> int:
    """Peak memory that grows with the data."""
    whole = work.total * index.bytes_per_vector + _centroids(work, index)
    if stage == "embed-chunks":
        # Besides the weights as they are stored: a copy in float32 to compare with, or the one that computes.
        return 2 * max(0, work.model_bytes - USUAL_MODEL_BYTES)
    if stage == "train-faiss-index":
        return index.training_vectors * work.dimension * 4
    if stage == "build-faiss-index":
        return work.largest_shard * index.bytes_per_vector + _centroids(work, index)
    if stage in ("merge-indexes", "tune-search"):
        return whole
    if stage in ("describe", "validate"):  # The head of an index: as read, and without vectors.
        return 2 * _centroids(work, index)
    if stage == "retrieve-neighbours":
        row = CANDIDATES * CANDIDATE_BYTES + 8 * work.dimension
        return whole + min(memory.search_batch(work.memory_budget), work.largest_shard * row)
    return 0


def _centroids(work: Work, index: Index) -> int:
    return index.lists * work.dimension * 4 if index.lists > 1 else 0
