"""Recall, fill rate and speed of the search: the original, plain faiss and this package in one run.

Uses real text (see real_text.py), embedded by the stages; existing outputs are reused. The ground truth is exact search
over all chunks of other documents. Prints a table in total and by category.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import real_text
from numpy.typing import NDArray

from retro_ops.compute.device import choose
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.search import brute_force, chunk_reader, exact, hits, open_index, reranking, seed_profile, tuning
from retro_ops.search.queries import join, query_shard, sample

REPOSITORY = Path(__file__).resolve().parents[1]
K = 4
CELLS = 2**24
NPROBES = (1, 16, 64, 256)
TARGETS = (0.9, 0.95, 0.99)

Ids = NDArray[np.int64]


def stage(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "retro_ops.cli", name, *words], check=True, cwd=REPOSITORY)


def prepare(folder: Path, model: str, index_type: str) -> Plan:
    """Make plan, chunks, embeddings and a filled index in ``folder``."""
    if not (folder / "text/train").exists():
        real_text.write(folder / "text")
    uri = str(folder / "plan.json")
    stage(
        "plan", "--root", str(folder), "--dataset", "recall", "--corpus", str(folder / "text/train"),
        "--tokenizer", model, "--model", model, "--index-type", index_type, "--output", uri,
    )  # fmt: skip
    plan = read_plan(uri)
    for name in ("tokenize-and-chunk", "embed-chunks"):
        for shard in plan.shards:
            stage(name, "--plan", uri, "--shard", shard.name)
    stage("train-faiss-index", "--plan", uri)
    for shard in plan.shards:
        stage("build-faiss-index", "--plan", uri, "--shard", shard.name)
    stage("merge-indexes", "--plan", uri)
    return plan


def plain_faiss(index: reranking.Index, queries: hits.Queries, margin: int, nprobe: int, chunks: Ids) -> Ids:
    """Neighbours in the order of the index, without hits of the same document."""
    assert index.coarse, "a GPU searches whole vectors rather than codes"
    _, ids = index.coarse(queries.vectors.astype(np.float32), K + margin, nprobe)
    keep = (ids >= 0) & (chunks[np.maximum(ids, 0)] != queries.documents.view(np.int64)[:, None])
    return seed_profile.keep_first(ids, np.zeros(ids.shape, np.float32), keep, K).ids


def recall(found: Ids, truth: Ids) -> float:
    hits = (found[:, :, None] == truth[:, None, :]) & (truth[:, None, :] >= 0)
    return float(hits.sum() / (truth >= 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--index-type", default="IVF1024,PQ64")
    parser.add_argument("--queries", type=int, default=10_000)
    arguments = parser.parse_args()
    plan = prepare(arguments.folder, arguments.model, arguments.index_type)
    chunks = chunk_reader.IndexedChunks(paths.index_shards(plan, "train"))
    where = choose("auto", "faiss")
    index = open_index.SearchedIndex(paths.index_uri(plan, "train"), chunks, where, Parameters(), "train", 0).index
    shards = [query_shard(chunks, position, with_tokens=False) for position in range(len(plan.shards))]
    each = arguments.queries // len(shards)
    queries = join([sample([shard], each, seed=1) for shard in shards])
    owners = np.concatenate([block.documents for block in index.blocks(None)]).view(np.int64)
    start = time.monotonic()
    truth, _ = exact.unpack(brute_force.exact_search(queries, K, index.blocks).keys)
    exact_s = time.monotonic() - start
    print(f"{chunks.total:,} chunks, {arguments.index_type}, {len(queries):,} queries, k = {K}")
    print(f"{'search':44}{'recall@4':>10}{'full rows':>11}{'queries/s':>11}")
    print(
        f"{'exact (brute force)':44}{1:>10.4f}{(truth >= 0).all(axis=1).mean():>11.2%}{len(queries) / exact_s:>11,.0f}"
    )
    by_category = {}

    def row(name: str, find: Callable[[], Ids]) -> None:
        start = time.monotonic()
        found = find()
        seconds = time.monotonic() - start
        full = (found >= 0).all(axis=1).mean()
        print(f"{name:44}{recall(found, truth):>10.4f}{full:>11.2%}{len(queries) / seconds:>11,.0f}", flush=True)
        by_category[name] = [recall(found[i * each : (i + 1) * each], truth[i * each : (i + 1) * each])
                             for i in range(len(shards))]  # fmt: skip

    row("seed profile (nprobe 1, margin 4)", lambda: plain_faiss(index, queries, 4, 1, owners))
    for nprobe in NPROBES:
        row(f"plain faiss, nprobe {nprobe}, margin 60", lambda n=nprobe: plain_faiss(index, queries, 60, n, owners))
    queried = sample(shards, Parameters().recall_sample, seed=0)
    for target in TARGETS:
        tuned = tuning.tune(queried, index, Parameters(target_recall=target))
        assert tuned.width is not None
        name = f"ours, target {target} ({tuned.width.nprobe} lists, {tuned.width.candidates} candidates)"

        def ours(width: reranking.Width = tuned.width) -> Ids:
            return exact.unpack(reranking.find(queries, K, index, width, CELLS, reranking.Effort()).keys)[0]

        row(name, ours)
    print(f"\n{'recall@4 by category':44}" + "".join(f"{shard.name:>15}" for shard in plan.shards))
    for name, values in by_category.items():
        print(f"{name:44}" + "".join(f"{value:>15.4f}" for value in values))


if __name__ == "__main__":
    main()
