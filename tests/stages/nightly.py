"""A small dataset of real text that changes from night to night."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from runs import Done, call, whole_run
from samples import write_corpus

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store
from retro_ops.versions import history

EXACT = ("--index-type", "Flat", "--target-recall", "1")


@dataclass
class Nights:
    """A dataset that is refreshed from a folder of JSON lines."""

    folder: Path
    root: str
    texts: list[str]
    model: str
    flags: tuple[str, ...] = EXACT
    number: int = 0
    used: int = 0
    runs: list[Done] = field(default_factory=list)

    def put(self, name: str, documents: int = 3) -> None:
        texts = [self.texts[(self.used + i) % len(self.texts)] for i in range(documents)]
        self.used += documents
        write_corpus(self.folder / f"{name}.jsonl", texts)

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.jsonl").unlink()

    @property
    def corpus(self) -> tuple[str, ...]:
        return ("--corpus", f"{self.folder}/train", "--validation-corpus", f"{self.folder}/val")

    @property
    def settings(self) -> tuple[str, ...]:
        return (*self.corpus, "--tokenizer", self.model, "--model", self.model, *self.flags)

    def first(self) -> Done:
        return self.refresh(*self.settings)

    def refresh(self, *flags: str) -> Done:
        self.number += 1
        self.runs.append(whole_run(self.root, "d", f"night {self.number}", "--refresh", *flags))
        return self.runs[-1]

    def repair(self, *flags: str) -> Done:
        self.number += 1
        return whole_run(self.root, "d", f"repair {self.number}", "--repair", *flags)

    def scratch(self) -> Done:
        return whole_run(f"{self.root}-scratch-{self.number}", "d", "x", *self.settings)

    def series(self) -> history.Series:
        return history.read(self.root, "d")


@dataclass(frozen=True)
class First:
    """A first version, and a copy of it with which every test begins."""

    nights: Nights
    saved: Path

    def restored(self) -> Nights:
        """The dataset with only this version, without the changes of earlier tests."""
        work = Path(self.nights.root).parent
        shutil.rmtree(work)
        shutil.copytree(self.saved, work)
        return replace(self.nights, runs=list(self.nights.runs))


def planned(nights: Nights, name: str, *flags: str) -> str:
    uri = paths.plan_uri(nights.root, "d", name)
    call("plan", "--root", nights.root, "--dataset", "d", "--output", uri, "--refresh", *flags)
    return uri


def shards(nights: Nights) -> list[str]:
    """Names of the shards of the current version."""
    return [shard.name for shard in read_plan(nights.series().plan_uri()).shards]


def damage(uri: str) -> None:
    """One bit of it is changed."""
    data = bytearray(store.read(uri))
    data[len(data) // 2] ^= 1
    store.write(uri, bytes(data))


def three_versions(built: Nights) -> None:
    """The second has one shard more, the third one less and another in its place."""
    built.put("train/e")
    built.refresh()
    built.remove("train/b")
    built.put("train/d")
    built.refresh()


def place(of: Nights) -> list[str]:
    return ["--root", of.root, "--dataset", "d"]


def objects(root: str) -> dict[str, bytes]:
    return {uri: store.read(uri) for uri in store.at(root).list(root) if not uri.endswith(".lock")}
