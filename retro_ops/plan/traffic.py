"""Estimates what each stage reads from the store and writes to it, and how long several workers take.

Each term is a loop of a stage: docs/scale.md says which. Standard library only.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from retro_ops.plan import grid, sample_parts
from retro_ops.plan.estimate import RATES, Estimate, Index, Work, estimate
from retro_ops.plan.sample_parts import is_large
from retro_ops.plan.stage_graph import STAGES
from retro_ops.sizes import in_words

REQUEST_BYTES = 8 * 2**20
"""Bytes of a range request."""

BYTES_PER_SECOND = 0.5e9
"""What one process reads from a store or writes to it."""

MOST_TASKS = 256
"""Tasks that a stage is mapped to at most: the default of Airflow and of this package."""

GPU_BYTES = 72 * 10**9
"""Memory for vectors on a GPU of 80 GB, beside the workspace of a search."""

DOCUMENT_BYTES = 8
"""Identity of the document of a chunk."""

LIST_BYTES = 4
"""Inverted list of a vector."""

NEIGHBOUR_BYTES = 12
"""Id and distance of a neighbour."""

KEY_BYTES = 8
"""Id and distance of a hit in a cell."""

BLOCK_BYTES = 2**17
"""Tokens that are read for a neighbour of a sampled row: from a block of chunks, up to the next one wanted."""

OWN_BYTES = 16
"""Of a row of a cell: one hit of its own document, and the offset of the last one."""

FASTER_THAN_LINEAR = 1.1
"""Exponent from which on bytes are said to grow faster than the corpus."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that all ``tasks`` of a stage read and write together, and their requests."""

    tasks: int
    read: int
    written: int

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def requests(self) -> int:
        return 2 * self.tasks + -(-self.moved // REQUEST_BYTES)

    def as_json(self) -> dict[str, int]:
        return {**asdict(self), "requests": self.requests}


def traffic(work: Work, index: Index, workers: int, gpu_bytes: int = GPU_BYTES) -> dict[str, Traffic]:
    """What the stages of a first build read and write, by stage.

    Retrieval: by ``workers`` that each have a GPU with ``gpu_bytes`` for vectors, in a grid if these do not fit.
    """
    stored = estimate(work, index).bytes
    total, mapped = work.total, min(work.shards, MOST_TASKS)
    tokens, vectors = work.chunk_size * work.token_bytes, work.dimension * 2
    centroids = stored["train-faiss-index"]
    partials = stored["build-faiss-index"]
    train_index = work.indexed["train"] * index.bytes_per_vector if "val" in work.chunks else 0
    found = {
        # The corpus, and the chunks again for their checksum. Checkpoints are written, and then the whole.
        "tokenize-and-chunk": Traffic(mapped, work.corpus_bytes + total * tokens, 2 * stored["tokenize-and-chunk"]),
        "embed-chunks": Traffic(mapped, total * tokens, 2 * stored["embed-chunks"]),
        "train-faiss-index": Traffic(1, min(total, index.training_vectors) * vectors, centroids),
        "build-faiss-index": Traffic(mapped, total * vectors + mapped * centroids, partials + total * LIST_BYTES),
        "merge-indexes": Traffic(1, partials + train_index, stored["merge-indexes"]),
        **_samples_and_checks(work, index, mapped),
        **_retrieval(work, mapped, workers, gpu_bytes),
    }
    return {stage: found[stage] for stage in STAGES if stage in found}


def _samples_and_checks(work: Work, index: Index, mapped: int) -> dict[str, Traffic]:
    """The stages that measure and check. In a large corpus those that run once read the heads of indexes, the rows of
    samples, and of their neighbours blocks of tokens; mapped ones read the rest."""
    stored, vectors = estimate(work, index).bytes, work.dimension * 2
    exact = sum(held * (vectors + DOCUMENT_BYTES) for held in work.indexed.values())
    lists = sum(held * LIST_BYTES for held in work.indexed.values())
    everything = sum(stored[stage] for stage in ("tokenize-and-chunk", "embed-chunks", "retrieve-neighbours"))
    if not is_large(work.total):
        return {
            "tune-search": Traffic(1, exact + lists, 0),
            "describe": Traffic(1, exact, 0),
            "validate": Traffic(1, everything, 0),
        }
    head, splits = stored["train-faiss-index"], len(work.chunks)
    sampled = splits * work.recall_sample
    of_sample = sampled * (vectors + DOCUMENT_BYTES)
    parts = len(sample_parts.parts(max(work.indexed.values())))
    truth = 2 * sampled * work.num_neighbours * KEY_BYTES * parts
    tokens = min(sampled * work.num_neighbours * BLOCK_BYTES, work.total * work.chunk_size * work.token_bytes)
    checked = work.total * (vectors + work.num_neighbours * NEIGHBOUR_BYTES + LIST_BYTES)
    return {
        "search-samples": Traffic(parts, exact + 2 * parts * of_sample, truth),
        "tune-search": Traffic(1, head + of_sample + truth, 0),
        "validate-shards": Traffic(mapped, checked, 0),
        "describe": Traffic(1, splits * head + of_sample + truth + tokens, 0),
        "validate": Traffic(1, splits * head, 0),
    }


def _retrieval(work: Work, mapped: int, workers: int, gpu_bytes: int) -> dict[str, Traffic]:
    row, total = work.dimension * 2 + DOCUMENT_BYTES, work.total
    neighbours = total * work.num_neighbours * NEIGHBOUR_BYTES
    shape = grid.choose(max(work.indexed.values()), work.dimension, gpu_bytes, workers, MOST_TASKS)
    if shape is None:  # Each task loads the vectors, and reads its queries.
        of_split = {split: max(1, round(mapped * count / max(1, total))) for split, count in work.chunks.items()}
        loaded = sum(of_split[split] * held * (row + LIST_BYTES) for split, held in work.indexed.items())
        return {"retrieve-neighbours": Traffic(mapped, loaded + total * row, 2 * neighbours)}
    ranges = {split: shape.ranges if split == "train" else 1 for split in work.chunks}
    loaded = sum(ranges[split] * held * (row + LIST_BYTES) for split, held in work.indexed.items())
    partial = shape.parts * total * (work.num_neighbours * KEY_BYTES + OWN_BYTES)
    return {
        "search-parts": Traffic(shape.parts * sum(ranges.values()), loaded + shape.parts * total * row, partial),
        "retrieve-neighbours": Traffic(mapped, partial, 2 * neighbours),
    }


def faster_than_linear(work: Work, index: Index, workers: int) -> dict[str, float]:
    """Stages whose bytes grow faster than the corpus, with the exponent e: as its size to the power of e."""
    twice = replace(
        work,
        chunks={split: 2 * count for split, count in work.chunks.items()},
        documents=2 * work.documents,
        corpus_bytes=2 * work.corpus_bytes,
        largest_shard=2 * work.largest_shard,
    )
    one, two = traffic(work, index, workers), traffic(twice, index, workers)
    powers = {
        stage: math.log2(max(1, two[stage].moved) / max(1, of.moved)) for stage, of in one.items() if stage in two
    }
    return {stage: power for stage, power in powers.items() if power > FASTER_THAN_LINEAR}


def seconds_alone(seconds: Mapping[str, float], moved: Mapping[str, Traffic]) -> dict[str, float]:
    """Seconds of one worker by stage. It computes while it reads, so the longer of the two counts.

    ``seconds``: computing of one worker.
    """
    computing = dict(seconds)
    if "search-parts" in moved:  # In a grid the cells do the searching.
        computing["search-parts"] = computing.pop("retrieve-neighbours")
    return {stage: max(computing.get(stage, 0.0), of.moved / BYTES_PER_SECOND) for stage, of in moved.items()}


def hours(work: Work, seconds: Mapping[str, float], moved: Mapping[str, Traffic], workers: int) -> dict[str, float]:
    """Hours of each stage with ``workers`` workers; the stages follow one another.

    ``seconds``: computing of one worker. A mapped stage takes at least as long as its largest shard.
    """
    took = {}
    for stage, alone in seconds_alone(seconds, moved).items():
        even = 1 / min(workers, moved[stage].tasks)
        share = even if STAGES[stage].maps_over in ("cell", "part") else 1.0
        if STAGES[stage].maps_over == "shard":
            share = max(even, work.largest_shard / max(1, work.total))
        took[stage] = alone * share / 3600
    return took


def table(expected: Estimate, moved: Mapping[str, Traffic], took: Mapping[str, float]) -> list[str]:
    """The estimate as lines of a text table. ``took``: hours by stage; a short run is shown in seconds."""
    unit, per_hour, digits = ("hours", 1, 2) if sum(took.values()) >= 1 else ("seconds", 3600, 1)
    columns = ("stored", "read", "written", "requests", "peak memory", "CPU alone", "GPU alone", unit)
    lines = [f"{'stage':20}" + "".join(f"{name:>13}" for name in columns)]
    for stage, of in moved.items():
        cells = [in_words(size) for size in (expected.bytes.get(stage, 0), of.read, of.written)]
        cells.append(f"{of.requests:,}")
        cells.append(in_words(expected.peak_rss_bytes[stage]) if stage in expected.peak_rss_bytes else "")
        seconds = [expected.seconds[device].get(stage) for device in RATES]
        cells += ["" if alone is None else f"{alone:,.0f} s" for alone in seconds]
        cells.append(f"{took[stage] * per_hour:,.{digits}f}")
        lines.append(f"{stage:20}" + "".join(f"{cell:>13}" for cell in cells))
    return lines
