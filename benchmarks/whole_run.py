"""Runs and times all stages of a run one after the other in this process, like the DAGs but without Airflow."""

import ctypes
import importlib
import json
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from retro_ops.cli import main
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, source_list, stage_graph
from retro_ops.plan.plan import Plan
from retro_ops.storage import store

UNTIL_GATE = ("tokenize-and-chunk", "embed-chunks")
FROM_INDEX = ("train-faiss-index", "build-faiss-index", "merge-indexes", "tune-search", "retrieve-neighbours")
TO_PUBLISH = ("write-specs", "describe", "validate", "publish")
BEFORE_SHARDS = ("list-sources", "split-corpus", "plan", "sign-documents", "find-duplicates")
IN_ORDER = (*BEFORE_SHARDS, *UNTIL_GATE, "check-drift", *FROM_INDEX, *TO_PUBLISH)

NOW = multiprocessing.get_context("fork").Array(ctypes.c_char, 64)
"""Name of the stage that a child runs, for the process that kills it."""


class StageFailedError(Exception):
    """A stage ended with an exit code other than 0."""

    def __init__(self, arguments: list[str], code: int) -> None:
        super().__init__(arguments, code)
        self.code = code

    def __str__(self) -> str:
        return f"{' '.join(self.args[0])}: exit code {self.code}"


@dataclass
class Run:
    """A run of all stages and the time that it took."""

    plan_uri: str = ""
    seconds: Counter[str] = field(default_factory=Counter)
    """By stage."""
    cpu_seconds: Counter[str] = field(default_factory=Counter)
    """CPU time of this process and its children by stage, which other load on the machine affects less."""
    calls: Counter[str] = field(default_factory=Counter)
    """For how many shards (or how often) each stage had to run."""
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return read_plan(self.plan_uri)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def stage(self, name: str, *arguments: object, shards: int = 1) -> None:
        argv = [name, *map(str, arguments)]
        NOW.value = name.encode()
        started, used = time.monotonic(), _cpu_seconds()
        code = main(argv)
        self.seconds[name] += time.monotonic() - started
        self.cpu_seconds[name] += _cpu_seconds() - used
        self.calls[name] += shards
        if code:
            raise StageFailedError(argv, code)


def _cpu_seconds() -> float:
    of = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in of)


def run(root: str, dataset: str, name: str, *flags: object) -> Run:
    """A whole run with the flags of ``plan``; with ``--refresh`` or ``--repair`` only what is not done yet.

    ``--recipe`` and ``--source-folder`` stand first: files are listed and split before the plan is made.
    """
    done = Run(paths.plan_uri(root, dataset, name))
    flags = _from_recipe(done, root, dataset, name, flags)
    incremental = "--refresh" in flags or "--repair" in flags
    done.stage("plan", "--root", root, "--dataset", dataset, "--output", done.plan_uri, *flags)
    done.changes = json.loads(store.read(paths.changes_uri(done.plan_uri)))
    if incremental and done.changes["nothing"]:
        return done
    if done.plan.parameters.duplicates != "keep" and not done.plan.deduplicated:
        _stages(done, ("sign-documents",), incremental)
        done.stage("find-duplicates", "--plan", done.plan_uri)
        done.plan_uri = paths.next_plan_uri(done.plan_uri, "deduplicated")
    _stages(done, UNTIL_GATE, incremental)
    if "--refresh" in flags:
        done.stage("check-drift", "--plan", done.plan_uri)
        done.plan_uri = paths.next_plan_uri(done.plan_uri, "decided")
    _stages(done, FROM_INDEX, incremental)
    for stage in TO_PUBLISH:
        more = ["--changed-only"] if stage == "validate" and "--refresh" in flags else []
        done.stage(stage, "--plan", done.plan_uri, *more)
    return done


def _from_recipe(done: Run, root: str, dataset: str, name: str, flags: tuple[object, ...]) -> tuple[object, ...]:
    count = 4 if "--source-folder" in flags else 2
    if flags[0] != "--recipe":
        return flags
    uri = paths.sources_uri(root, dataset, name)
    done.stage("list-sources", *flags[:count], "--root", root, "--dataset", dataset, "--output", uri)
    for file in source_list.from_json(store.read(uri), uri).files:
        done.stage("split-corpus", "--sources", uri, "--file", file.name)
    return ("--sources", uri, *flags[count:])


def _stages(done: Run, stages: tuple[str, ...], incremental: bool) -> None:
    """Run each stage with all its shards in one call, like a mapped task of the DAGs with a group of shards."""
    plan = done.plan
    to_do: dict[str, list[str]] = {}
    for stage, shard in stage_graph.tasks(plan, stages):
        if not (incremental and store.exists(paths.report_uri(plan, stage, shard))):
            to_do.setdefault(stage, []).append(shard or "")
    for stage, shards in to_do.items():
        of = ["--shard", ",".join(shards)] if all(shards) else []
        done.stage(stage, "--plan", done.plan_uri, *of, shards=len(shards))


T = TypeVar("T")


def in_child(work: Callable[[], T], kill_after_s: float | None = None, stage: str | None = None) -> T | None:
    """``work`` in a process of its own; None if it was killed (-9) before it was done.

    ``stage``: the clock for the kill starts when it begins, or one after it. The caller must not compute itself:
    threads of numerical libraries do not survive a fork.
    """
    parent, child = multiprocessing.get_context("fork").Pipe()
    NOW.value = b""
    process = multiprocessing.get_context("fork").Process(target=_answer, args=(work, child))
    process.start()
    child.close()
    try:
        while stage and not _has_come(stage) and not parent.poll(0.002):
            pass
        if not parent.poll(kill_after_s):
            process.kill()
            return None
        answer = parent.recv()
    except EOFError as error:
        raise RuntimeError("the child ended without an answer") from error
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer  # type: ignore[no-any-return]


def _has_come(stage: str) -> bool:
    now = NOW.value.decode()
    return bool(now) and IN_ORDER.index(now) >= IN_ORDER.index(stage)


def _answer(work: Callable[[], Any], to: Any) -> None:
    try:
        to.send(work())
    except Exception as error:
        to.send(error)


def warm() -> None:
    """Import the libraries of the stages, so that a child does not spend its time on that."""
    for name in (
        "faiss",
        "matplotlib",
        "sentence_transformers",
        "torch",
        "transformers",
        "retro_ops.quality.card_page",
    ):
        importlib.import_module(name)
