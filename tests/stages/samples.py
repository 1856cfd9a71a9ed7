"""Small corpora and synthetic shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import stage_graph
from retro_ops.plan.plan import Plan

Run = Callable[..., None]


def write_corpus(path: Path, documents: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(d if isinstance(d, dict) else {"text": d}) + "\n" for d in documents))
    return path


def tokenize_flags(folder: Path, tokenizer: str) -> list[str]:
    """The original's three outputs in ``folder``."""
    return [
        *("--chunks-out", f"{folder}/chunks.npy", "--seq2chunk-index-out", f"{folder}/seq2chunk.npy"),
        *("--chunk2seq-index-out", f"{folder}/chunk2seq.npy", "--tokenizer", tokenizer),
    ]


def synthetic_shard(folder: Path, documents: list[int], seed: int, dimension: int = 32) -> Path:
    """A shard whose documents have the given numbers of chunks, with random unit vectors."""
    rng = np.random.default_rng(seed)
    total = sum(documents)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = rng.standard_normal((total, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / "embeddings.npy", vectors.astype(np.float16))
    np.save(folder / "chunks.npy", rng.integers(0, 1000, (total, 64)).astype(np.uint16))
    np.save(folder / "seq2chunk.npy", (np.cumsum(documents) - documents).astype(np.int64))
    np.save(folder / "chunk2seq.npy", np.repeat(np.arange(len(documents)), documents).astype(np.int32))
    return folder


def write_index_spec(path: Path, shards: list[Path]) -> Path:
    names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
    path.write_text(json.dumps([{name: str(shard / f"{name}.npy") for name in names} for shard in shards]))
    return path


def build_in_groups(run: Run, uri: str, size: int) -> Plan:
    """Up to the specs; ``size`` shards a call."""
    plan = read_plan(uri)
    for stage in [stage for stage in stage_graph.stages(plan) if stage != "describe"]:
        if stage_graph.STAGES[stage].maps_over is None:
            run(stage, "--plan", uri)
            continue
        names = [shard.name for shard in stage_graph.shards_of(plan, stage)]
        for first in range(0, len(names), size):
            run(stage, "--plan", uri, "--shard", ",".join(names[first : first + size]))
    return plan
