"""Sends kill -9 at random points of refreshes and repairs, while a reader validates the published version all the time.

Each round adds files or rebuilds a shard. An undisturbed twin does the same once; the dataset itself is killed in
random stages before it may finish. At the end of a round both must have the same bytes, and at every moment the
reader must find a version that is completely valid.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from arrays import compare

from benchmarks.nights import Corpus
from benchmarks.whole_run import NOW, in_child, run, warm
from demo.make_corpus import documents
from retro_ops.build import steps
from retro_ops.cli import main as retro_ops
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store
from retro_ops.versions import history

DATASET = "kills"
KINDS = ("add", "repair", "change", "remove")
LONGEST_TEXT = 1500
KILLS_A_ROUND = 12


def read_on(root: str, answers: Any, stop: Any) -> None:
    """A reader that records which versions it saw, how often, and what was wrong with them."""
    seen: dict[int, int] = {}
    wrong: list[str] = []
    while not stop.is_set():
        series = history.read(root, DATASET)
        plan = read_plan(series.plan_uri())
        specs = [paths.dataset_spec_in(series.folder(), split) for split in plan.splits()]
        if retro_ops(["validate", "--spec", *specs]):
            wrong.append(f"version {series.current} does not validate")
        seen[series.current] = seen.get(series.current, 0) + 1
        time.sleep(0.05)
    answers.send((seen, wrong))


def rounds(work: Path, corpus: Corpus, wanted: int) -> tuple[int, Counter[str], list[str]]:
    """The number of rounds, the kills by stage, and what was wrong."""
    root, twin = str(work / "killed"), str(work / "twin")
    kills: Counter[str] = Counter()
    randomness, number, wrong = corpus.random, 0, []
    while kills.total() < wanted:
        number += 1
        kind = KINDS[number % len(KINDS)]
        flags: list[object] = ["--refresh"]
        if kind == "repair":
            shards = [shard.name for shard in read_plan(history.read(root, DATASET).plan_uri()).shards]
            flags = ["--repair", "--shards", randomness.choice(shards)]
        else:
            corpus.night(kind)
        name = f"round-{number:03}"
        undisturbed = in_child(partial(run, twin, DATASET, name, *flags))
        assert undisturbed is not None
        before = kills.total()
        # All stages equally often, however short; in order, since finished stages do not run again.
        stages = sorted(randomness.choices(steps.ALL, k=min(KILLS_A_ROUND, wanted - before)), key=steps.ALL.index)
        for stage in stages:
            after_s = undisturbed.seconds[stage] * randomness.random()
            if in_child(partial(run, root, DATASET, name, *flags), after_s, stage) is not None:
                break
            kills[NOW.value.decode()] += 1
        done = in_child(partial(run, root, DATASET, name, *flags))
        assert done is not None
        if done.changes["nothing"]:  # The previous run was killed after publishing.
            done.plan_uri = history.read(root, DATASET).plan_uri()
        equal, chunks = compare(done.plan, undisturbed.plan)
        if set(equal.values()) != {1.0}:
            wrong.append(f"round {number} ({kind}): not as without kills: {equal}")
        if _published(root) != _published(twin):
            wrong.append(f"round {number} ({kind}): other specs are published than without kills")
        of_round = kills.total() - before
        print(
            f"round {number:3} {kind:7} {chunks:5} chunks: {of_round:3} kills, {undisturbed.total:4.1f} s undisturbed",
            flush=True,
        )
    return number, kills, wrong


def _published(root: str) -> dict[str, Any]:
    """Shards of the published specs and bytes of the indexes. Folders may differ if a repair was started twice."""
    series = history.read(root, DATASET)
    plan = read_plan(series.plan_uri())
    indexes = {split: store.sha256(paths.index_uri(plan, split)) for split in plan.splits()}
    return {"shards": [shard.name for shard in plan.shards], **indexes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder to work in")
    parser.add_argument("--model", required=True, help="folder of a sentence-transformer with its tokenizer")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    texts = (r["text"][:LONGEST_TEXT] for _ in range(99) for kind in ("docs", "code") for r in documents(kind))
    corpus = Corpus(arguments.folder / "corpus", texts, random.Random(arguments.seed), documents_a_shard=3)
    for _ in range(3):
        corpus.add()
    corpus.write("val/val_a", corpus.take(2))
    flags: list[object] = ["--corpus", corpus.folder / "train", "--validation-corpus", corpus.folder / "val"]
    flags += ["--tokenizer", arguments.model, "--model", arguments.model, "--index-type", "Flat", "--target-recall", 1]
    log = (arguments.folder / "log").open("w")
    os.dup2(log.fileno(), 2)
    warm()
    for name in ("killed", "twin"):
        in_child(partial(run, str(arguments.folder / name), DATASET, "first", *flags))
    processes = multiprocessing.get_context("fork")
    answers, of_reader = processes.Pipe()
    stop = processes.Event()
    reader = processes.Process(target=read_on, args=(str(arguments.folder / "killed"), of_reader, stop))
    reader.start()
    try:
        number, kills, wrong = rounds(arguments.folder, corpus, arguments.kills)
    finally:
        stop.set()
    seen, broken = answers.recv()
    reader.join()
    total = kills.total()
    print(f"{total} kills in {number} rounds; the reader validated {sum(seen.values()):,} times {len(seen)} versions")
    print("kills by stage: " + ", ".join(f"{stage} {count}" for stage, count in kills.most_common()))
    for finding in [*wrong, *broken]:
        print(finding)
    print(json.dumps({"kills": total, "rounds": number, "reads": sum(seen.values()), "wrong": len(wrong + broken)}))
    sys.exit(bool(wrong or broken))


if __name__ == "__main__":
    main()
