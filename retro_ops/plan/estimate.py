"""What a run will take, from the number of chunks: bytes, peak memory and seconds of each stage.

The rates were measured with this package, on 2 cores of a server and on one H100 (docs/benchmarks.md).
They are a first guess for other machines; the dataset card sets them beside what the run took. Standard library only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retro_ops import memory
from retro_ops.plan.stage_graph import SHARD_STAGES

MIB = 2**20

TOKENIZED_PER_SECOND = 13_300.0
MERGED_PER_SECOND = 375_000.0


@dataclass(frozen=True)
class Rates:
    """A second. ``embedded``: chunks of 64 tokens, all-MiniLM-L6-v2. The others are pairs of two vectors: ``assigned``,
    with a centroid (of a list or of a code) while an index is filled; ``trained``, while it is trained, 10 rounds for
    lists; ``compared``, in exact search, by whole vectors in memory and, ``read``, as they are read; ``scanned``, in
    probed lists, with the exact distances of the candidates."""

    embedded: float
    assigned: float
    trained: float
    compared: float
    read: float
    scanned: float


RATES = {
    "cpu": Rates(embedded=190, assigned=3.0e7, trained=2.0e8, compared=5.5e7, read=5.5e7, scanned=3.1e7),
    "cuda": Rates(embedded=190_000, assigned=6.0e10, trained=2.1e11, compared=7.8e10, read=8.0e8, scanned=3.0e10),
}
"""Of 2 cores, and of one H100."""

VALIDATED_PER_SECOND = 350_000.0

TASK_SECONDS = {"tokenize-and-chunk": 3.4, "embed-chunks": 5.0, "describe": 4.0}
"""To load tokenizer, model, fonts; the others need next to nothing."""

PROBED_SHARE = 1 / 16
"""Share of the lists that the default target takes, as measured on 244,970 chunks."""

LIBRARIES = {
    "tokenize-and-chunk": 430 * MIB,
    "embed-chunks": 1700 * MIB,
    "train-faiss-index": 300 * MIB,
    "build-faiss-index": 110 * MIB,
    "merge-indexes": 110 * MIB,
    "tune-search": 360 * MIB,
    "retrieve-neighbours": 360 * MIB,
    "describe": 500 * MIB,
    "validate": 150 * MIB,
}
"""Peak memory without what grows with the data: Python, libraries, model, blocks."""

CANDIDATE_BYTES = 48
CANDIDATES = 64


@dataclass(frozen=True)
class Index:
    """``bytes_per_vector``: code and id. ``training_vectors``: what it is trained on."""

    lists: int
    bytes_per_vector: int
    training_vectors: int


@dataclass(frozen=True)
class Work:
    """What there is to do. ``chunks``: by split; ``largest_shard``: its chunks; the rest as in ``Parameters``."""

    chunks: Mapping[str, int]
    documents: int
    shards: int
    largest_shard: int
    chunk_size: int
    token_bytes: int
    dimension: int
    num_neighbours: int
    recall_sample: int
    memory_budget: int

    @property
    def total(self) -> int:
        return sum(self.chunks.values())

    @property
    def indexed(self) -> dict[str, int]:
        """Vectors in the index of each split: that of validation holds the training chunks as well."""
        return {split: count if split == "train" else self.total for split, count in self.chunks.items()}


@dataclass(frozen=True)
class Estimate:
    """``seconds`` by device and stage, of one worker that does all tasks one after the other; ``bytes`` stored and
    ``peak_rss_bytes`` by stage."""

    chunks: dict[str, int]
    bytes: dict[str, int]
    peak_rss_bytes: dict[str, int]
    seconds: dict[str, dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(work: Work, index: Index) -> Estimate:
    total, vector = work.total, index.bytes_per_vector
    return Estimate(
        chunks={**work.chunks, "all": total},
        bytes={
            # Tokens, document of each chunk (number and identity); first chunk and sidecar line of each document.
            "tokenize-and-chunk": total * (work.chunk_size * work.token_bytes + 12) + work.documents * 40,
            "embed-chunks": total * work.dimension * 2,
            "train-faiss-index": _centroids(work, index),
            "build-faiss-index": total * vector + work.shards * _centroids(work, index),
            "merge-indexes": sum(work.indexed.values()) * vector + len(work.chunks) * _centroids(work, index),
            "retrieve-neighbours": total * work.num_neighbours * 12,
        },
        peak_rss_bytes={stage: base + _growing(stage, work, index) for stage, base in LIBRARIES.items()},
        seconds={device: _seconds(work, index, rates) for device, rates in RATES.items()},
    )


def table(found: Estimate) -> list[str]:
    """Lines for people."""
    lines = [f"{'stage':22}{'stored':>12}{'peak memory':>14}{'on CPU':>12}{'with a GPU':>12}"]
    for stage, peak in found.peak_rss_bytes.items():
        times = "".join(f"{found.seconds[device][stage]:>10,.0f} s" for device in ("cpu", "cuda"))
        lines.append(f"{stage:22}{found.bytes.get(stage, 0) / MIB:>8,.0f} MiB{peak / MIB:>10,.0f} MiB{times}")
    return lines


def scaled(samples: Sequence[tuple[int, float, int]], total_bytes: int) -> int:
    """Count in ``total_bytes`` of files, from (bytes of a file, share of it that was read, count in that share)."""
    read = sum(size * share for size, share, _ in samples)
    return round(sum(count for _, _, count in samples) * total_bytes / read) if read else 0


def _seconds(work: Work, index: Index, rates: Rates) -> dict[str, float]:
    total, in_indexes = work.total, sum(work.indexed.values())
    pairs = work.recall_sample * in_indexes
    scanned = sum(work.chunks[split] * held for split, held in work.indexed.items())
    scanned_share = PROBED_SHARE if index.lists > 1 else 1.0
    took = {
        "tokenize-and-chunk": total / TOKENIZED_PER_SECOND,
        "embed-chunks": total / rates.embedded,
        "train-faiss-index": index.training_vectors * index.lists * 10 / rates.trained if index.lists > 1 else 0,
        "build-faiss-index": total * (index.lists + 256) / rates.assigned if index.lists > 1 else 0,
        "merge-indexes": in_indexes / MERGED_PER_SECOND,
        # Exact search, and trials of 1, 2, 4, … lists: together twice the whole index.
        "tune-search": pairs * (1 / rates.compared + 2 / rates.scanned),
        "retrieve-neighbours": scanned * scanned_share / rates.scanned,
        "describe": pairs / rates.read,
        "validate": total / VALIDATED_PER_SECOND,
    }
    return {
        stage: round(seconds + TASK_SECONDS.get(stage, 0.1) * (work.shards if stage in SHARD_STAGES else 1), 1)
        for stage, seconds in took.items()
    }


def _growing(stage: str, work: Work, index: Index) -> int:
    """Peak memory that grows with the data."""
    whole = work.total * index.bytes_per_vector + _centroids(work, index)
    if stage == "train-faiss-index":
        return index.training_vectors * work.dimension * 4
    if stage == "build-faiss-index":
        return work.largest_shard * index.bytes_per_vector + _centroids(work, index)
    if stage in ("merge-indexes", "tune-search", "describe", "validate"):
        return whole
    if stage == "retrieve-neighbours":
        row = CANDIDATES * CANDIDATE_BYTES + 8 * work.dimension
        return whole + min(memory.search_batch(work.memory_budget), work.largest_shard * row)
    return 0


def _centroids(work: Work, index: Index) -> int:
    return index.lists * work.dimension * 4 if index.lists > 1 else 0
