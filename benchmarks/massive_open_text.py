"""Builds a small Pile and RealNews (see massive_open_text_tree.py) with one trigger of the DAG ``massive_open_text``.

Starts a stack of its own in FOLDER (see demo/stack.py) and stops it at the end. The export must have every file name of
the original, and both dataset specs must load.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

import numpy as np
from stack import Stack

from benchmarks import live_run
from demo import massive_open_text_tree
from retro_ops.plan.specs import dataset_spec_from_json, index_spec_from_json

DAG = "massive_open_text"
DATASET = "MassiveOpenText"
CATEGORIES = ("wikipedia_en", "github", "pile_cc", "books3", "realnews")
INDEX_TYPE = "IVF64,Flat"
"""Index type of the preset ``tiny``."""


def names(shards: int) -> set[str]:
    """All file names of the original, relative to its folder."""
    found = {f"retriever_sentence_transformer/{name}" for name in (f"{INDEX_TYPE}.index", "train.index", "val.index")}
    for category in CATEGORIES:
        for shard in (*(f"{number:02}_{category}" for number in range(shards)), f"val_{category}"):
            found |= {f"chunk_shards/{shard}.{kind}.npy" for kind in ("chunks", "seq2chunk", "chunk2seq")}
            for kind in ("embeddings", "neighbours"):
                found.add(f"retriever_sentence_transformer/{kind}/{shard}.{kind}.npy")
    return found


def check(exported: Path, shards: int) -> None:
    """Exit unless all files exist and both specs load with the expected number of rows in each array."""
    there = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    if missing := sorted(names(shards) - set(there)):
        sys.exit(f"{len(missing)} files of the original are missing, such as {missing[:5]}; there are {sorted(there)}")
    for uri in sorted(str(path) for name, path in there.items() if name.endswith("data.spec.json")):
        spec = dataset_spec_from_json(Path(uri).read_text(), uri)
        index = index_spec_from_json(Path(spec.index_spec).read_text(), spec.index_spec)
        rows = [len(np.load(shard.chunks, mmap_mode="r")) for shard in spec.shards]
        assert rows == [len(np.load(shard.neighbours, mmap_mode="r")) for shard in spec.shards]
        total = sum(len(np.load(shard.embeddings, mmap_mode="r")) for shard in index)
        print(
            f"{uri}: {len(spec.shards)} shards, {sum(rows):,} chunks; its index: {len(index)} shards, {total:,} chunks"
        )
    print(f"all {len(names(shards)):,} names of the original are there, of {len(there):,} files")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents-per-shard", type=int, default=16)
    parser.add_argument(
        "--shards", type=int, default=massive_open_text_tree.SHARDS, help="training shards per category"
    )
    parser.add_argument("--tasks", type=int, help="maximum number of tasks per stage (RETRO_MAPPED_TASKS)")
    arguments = parser.parse_args()
    if arguments.tasks:
        os.environ["RETRO_MAPPED_TASKS"] = str(arguments.tasks)
    folder = arguments.folder.resolve()
    recipe = massive_open_text_tree.write(folder / "sources", arguments.documents_per_shard, arguments.shards)
    stack = Stack(folder / "stack")
    os.environ.update(stack.environment())
    with live_run.running(stack):
        conf = {"source_folder": str(folder / "sources"), "recipe": str(recipe), "preset": "tiny", "dataset": DATASET}
        shards = (arguments.shards + 1) * len(CATEGORIES)
        live_run.run_once(stack, DAG, f"massive-{int(time.time())}", conf, shards)
        live_run.timed(DATASET, "status")
        live_run.timed(DATASET, "export", "--to", str(folder / "exported"))
        check(folder / "exported", arguments.shards)


if __name__ == "__main__":
    main()
