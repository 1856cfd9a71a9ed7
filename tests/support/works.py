"""Sizes of runs, for tests and benchmarks of the estimates of `plan`."""

from dataclasses import replace
from typing import Any

from retro_ops.plan.estimate import Index, Work

ORIGINAL_INDEX = Index(131_072, 40, 131_072 * 256)
"""``IVF131072,PQ32``, as the original used."""

MINILM = Work(
    chunks={"train": 200_000, "val": 44_970},
    documents=25_973,
    shards=5,
    largest_shard=63_899,
    chunk_size=64,
    chunk_operations=1.36e9,
    model_bytes=90_000_000,
    token_bytes=2,
    dimension=384,
    num_neighbours=4,
    recall_sample=2000,
    memory_budget=2**31,
)
"""A small corpus, embedded with all-MiniLM-L6-v2."""


def sized(chunks: int, shards: int = 100, largest: int = 0, val: int = 0, **others: Any) -> Work:
    """A corpus of ``chunks``, ``val`` of them for validation: 275 bytes and a fifth of a document for each."""
    splits = {"train": chunks - val, "val": val} if val else {"train": chunks}
    work = replace(
        MINILM,
        chunks=splits,
        documents=chunks // 5,
        shards=shards,
        largest_shard=largest or chunks // shards,
        corpus_bytes=chunks * 275,
    )
    return replace(work, **others)


def massive_open_text(chunks: int, largest: float = 0.02) -> Work:
    """Of the shape of MassiveOpenText: 155 shards, the largest with a share of ``largest``, 1 % for validation."""
    return sized(chunks, 155, int(chunks * largest), chunks // 100, num_neighbours=2)


def shard_shares(count: int, largest: float) -> list[float]:
    """Shares of ``count`` shards, the largest first: they fall evenly to where they add up to 1."""
    least = 2 / count - largest
    if least < 0:  # One large shard beside equal ones.
        return [largest, *([(1 - largest) / (count - 1)] * (count - 1))]
    return [largest + (least - largest) * number / (count - 1) for number in range(count)]
