"""The steps of `retro-ops build` in this process, each timed, with the CPU time that it took."""

import argparse
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

from retro_ops.build import command
from retro_ops.build.steps import ALL, Request, steps
from retro_ops.cli import main
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store

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


def request_of(root: str, dataset: str, name: str, *flags: object) -> Request:
    """A run with flags of `retro-ops build`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    place = ("--root", root, "--dataset", dataset, "--run", name)
    arguments, parameters = parser.parse_known_args([*place, *map(str, flags)])
    for flag, value in zip(parameters[::2], parameters[1::2], strict=True):
        setattr(arguments, flag.removeprefix("--").replace("-", "_"), value)
    return command.request_of(arguments)


def run(root: str, dataset: str, name: str, *flags: object) -> Run:
    """A whole run with flags of `retro-ops build`; each stage is called through the command line, here."""
    request = request_of(root, dataset, name, *flags)
    done = Run(request.plan_uri)
    for step in steps(request):
        done.plan_uri = step.arguments.get("plan", request.plan_uri)
        done.stage(*step.command(), shards=step.shards)
    done.changes = json.loads(store.read(paths.changes_uri(done.plan_uri)))
    return done


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
    # Commands such as rollback are no stages: they have come at once.
    return bool(now) and (now not in ALL or ALL.index(now) >= ALL.index(stage))


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
