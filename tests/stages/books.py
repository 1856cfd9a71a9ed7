"""A small dataset named books: its corpus, its plan, all its stages and what they wrote."""

from pathlib import Path

import numpy as np
from samples import Run, write_corpus

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import npy


def make_corpus(folder: Path, texts: list[str]) -> Path:
    write_corpus(folder / "train/00_a.jsonl", [{"text": t, "id": i} for i, t in enumerate(texts[:6])])
    write_corpus(folder / "train/01_b.jsonl", texts[6:12])
    write_corpus(folder / "val/val_a.jsonl", texts[12:15])
    return folder


def plan_of(run: Run, root: str, corpus: str, tokenizer: str, model: str, *options: str) -> str:
    uri = paths.plan_uri(root, "books", "a run: 1")
    run(
        *("plan", "--root", root, "--dataset", "books", "--corpus", f"{corpus}/train/*.jsonl"),
        *("--validation-corpus", f"{corpus}/val", "--output", uri, "--tokenizer", tokenizer, "--model", model),
        *("--index-type", "IVF4,Flat", "--num-neighbours", 2, *options),
    )
    return uri


def build(run: Run, uri: str) -> Plan:
    """Every stage of the plan, in order."""
    run("build", "--plan", uri)
    return read_plan(uri)


def arrays_of(plan: Plan) -> dict[str, np.ndarray]:
    found = {}
    for shard in plan.shards:
        files = paths.chunks_files(plan, shard.name)
        files["embeddings"] = paths.embeddings_uri(plan, shard.name)
        files["neighbours"] = paths.neighbours_uri(plan, shard.name)
        for name, uri in files.items():
            reader = npy.open_npy(uri)
            found[f"{shard.name}/{name}"] = reader.rows(0, len(reader))
    return found
