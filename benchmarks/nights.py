"""A month of nightly refreshes on real text, each compared with a dataset that is built from scratch.

Files are added, changed and removed; on some nights there is nothing new, a broken file, a kill -9 during the
refresh, or so much new text that the index is retrained. After each night every array of the refreshed dataset is
compared with that of the full build. With --exact (a flat index and exact search) all must be equal; otherwise chunks
and embeddings must be equal and the recall must not be lower.
"""

import argparse
import gzip
import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from arrays import compare

from benchmarks.whole_run import Run, StageFailedError, in_child, run, warm
from demo.make_corpus import documents
from retro_ops.plan import paths
from retro_ops.versions import history

DATASET = "nights"
DOCUMENTS_A_SHARD = 12
LONGEST_TEXT = 4000

CODES = "IVF16,PQ96x4"
"""Codebooks of 16 centroids; 256 would overfit a few hundred chunks and never fit those of the next night."""

MOST_LOSS = 0.005
"""Tolerated difference of recall on a few hundred rows; less than this depends on the chosen nprobe."""

KINDS = ("add", "change", "idle", "remove", "add", "killed", "change", "broken", "fixed", "add")
"""Ten nights, repeated three times in a month. ``fixed`` replaces the file of ``broken``."""


@dataclass
class Corpus:
    """A folder of JSON lines with one file per shard, filled from a pool of documents."""

    folder: Path
    texts: Iterator[str]
    random: random.Random
    made: int = 0
    documents_a_shard: int = DOCUMENTS_A_SHARD

    def write(self, name: str, texts: list[str]) -> None:
        path = self.folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def take(self, count: int) -> list[str]:
        return [next(self.texts) for _ in range(count)]

    def add(self) -> None:
        # Sometimes sorted before the others, so that all ids change.
        self.write(f"train/{self.random.choice('amz')}{self.made:02}", self.take(self.documents_a_shard))
        self.made += 1

    def night(self, kind: str) -> None:
        shards = sorted((self.folder / "train").glob("*.jsonl"))
        if kind in ("add", "killed"):
            self.add()
        elif kind == "change":
            self.write(f"train/{self.random.choice(shards).stem}", self.take(self.documents_a_shard))
        elif kind == "remove":
            self.random.choice(shards).unlink()
        elif kind == "broken":
            data = gzip.compress(b"".join(json.dumps({"text": t}).encode() + b"\n" for t in self.take(4)))
            (self.folder / "train/n_broken.jsonl.gz").write_bytes(data[: len(data) // 2])
        elif kind == "fixed":
            self.folder.joinpath("train/n_broken.jsonl.gz").unlink()
            self.write("train/n_fixed", self.take(4))


def nights(work: Path, corpus: Corpus, count: int, flags: list[object], exact: bool) -> int:
    """Print a line per night; return the number of nights with wrong arrays."""
    root, wrong = str(work / "refreshed"), 0
    print(f"{'night':>5} {'kind':8} {'shards':>6} {'chunks':>6} {'version':>7}  ", end="")
    print(f"{'done':44}{'refresh':>8}{'full':>8}  arrays")
    for number in range(count + 1):
        kind = KINDS[(number - 1) % len(KINDS)] if number else "first"
        if number:
            corpus.night(kind)
        name = f"night-{number:02}"
        first = [] if number else flags
        said = ""
        refresh = partial(run, root, DATASET, name, "--refresh", *first)
        if kind == "killed" and in_child(refresh, corpus.random.uniform(1, 5)) is None:
            said = "kill -9, then "
        try:
            refreshed = _answered(in_child(refresh))
        except StageFailedError as error:
            said = f"a shard failed with exit code {error.code}: nothing published"
            print(f"{number:5} {kind:8} {'':6} {'':6} {_version(root):7}  {said}")
            continue
        scratch = _answered(in_child(partial(run, str(work / f"full-{number:02}"), DATASET, name, *flags)))
        equal, counts = compare(refreshed.plan, scratch.plan)
        must = [*ARRAYS, "neighbours", "distances"] if exact else ARRAYS
        lower = _recall(refreshed) < _recall(scratch) - MOST_LOSS
        wrong += lower or not all(equal[what] == 1 for what in must)
        shown = "all equal" if all(value == 1 for value in equal.values()) else _shown(equal, refreshed, scratch)
        said += _done(refreshed)
        print(f"{number:5} {kind:8} {len(scratch.plan.shards):6} {counts:6} {_version(root):7}  ", end="")
        print(f"{said:44}{refreshed.total:7.1f}s{scratch.total:7.1f}s  {shown}", flush=True)
    return wrong


ARRAYS = ["chunks", "seq2chunk", "chunk2seq", "embeddings"]


def _answered(done: Run | None) -> Run:
    assert done is not None
    return done


def _done(refreshed: Run) -> str:
    if refreshed.changes["nothing"]:
        return "nothing to do"
    decision = json.loads(Path(paths.drift_uri(refreshed.plan_uri)).read_text())
    kinds = [f"{len(refreshed.changes[k])} {k}" for k in ("added", "changed", "removed") if refreshed.changes[k]]
    return ", ".join(kinds) + (", retrained" if decision["retrain"] else ", retuned" if decision["retune"] else "")


def _version(root: str) -> int:
    return history.read(root, DATASET).current


def _shown(equal: dict[str, float], refreshed: Run, scratch: Run) -> str:
    recall = [_recall(done) for done in (refreshed, scratch)]
    differ = ", ".join(f"{what} {value:.3f}" for what, value in equal.items() if value != 1)
    return f"equal but {differ}; recall {recall[0]:.3f}, full build {recall[1]:.3f}"


def _recall(done: Run) -> float:
    card: dict[str, Any] = json.loads(Path(paths.card_uri(done.plan, "json")).read_text())
    return float(card["quality"]["train"]["recall"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder to work in")
    parser.add_argument("--model", required=True, help="folder of a sentence-transformer with its tokenizer")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exact", action="store_true", help="flat index and exact search: all arrays must be equal")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    # Twice, since a month needs more text than there is; real corpora have copies, too.
    texts = (r["text"][:LONGEST_TEXT] for _ in range(2) for kind in ("docs", "code") for r in documents(kind))
    corpus = Corpus(arguments.folder / "corpus", texts, random.Random(arguments.seed))
    for _ in range(5):
        corpus.add()
    corpus.write("val/val_a", corpus.take(4))
    flags: list[object] = ["--corpus", corpus.folder / "train", "--validation-corpus", corpus.folder / "val"]
    flags += ["--tokenizer", arguments.model, "--model", arguments.model]
    flags += ["--index-type", "Flat", "--target-recall", 1] if arguments.exact else ["--index-type", CODES]
    # The log of the stages goes to a file, so that the table stays readable.
    log = (arguments.folder / "log").open("w")
    os.dup2(log.fileno(), 2)
    warm()
    wrong = nights(arguments.folder, corpus, arguments.nights, flags, arguments.exact)
    sys.exit(f"{wrong} nights are not as they must be" if wrong else 0)


if __name__ == "__main__":
    main()
