"""Whole runs by `retro-ops build`, and what they did."""

import contextlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import arrays

from retro_ops.cli import main
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store


class StageFailedError(Exception):
    """A command ended with an exit code other than 0."""

    def __init__(self, arguments: list[str], code: int) -> None:
        super().__init__(f"{' '.join(arguments)}: exit code {code}")
        self.code = code


@dataclass
class Done:
    """A run: its last plan, for how many shards each stage was called (or how often), and what differed before."""

    plan_uri: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return read_plan(self.plan_uri)


def call(*arguments: object) -> str:
    """Run a command in this process. Its standard output; StageFailedError with its exit code if that is not 0."""
    words = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    if code:
        raise StageFailedError(words, code)
    return out.getvalue()


def whole_run(root: str, dataset: str, name: str, *flags: object) -> Done:
    """`retro-ops build` with ``flags``."""
    return _done(call("build", "--root", root, "--dataset", dataset, "--run", name, *flags, "--json"))


def to_the_end(plan_uri: str) -> Done:
    """The stages of a refresh after its plan."""
    return _done(call("build", "--plan", plan_uri, "--refresh", "--json"))


def _done(summary: str) -> Done:
    facts = json.loads(summary)
    calls = Counter({name: of["shards"] for name, of in facts["stages"].items()})
    return Done(facts["plan"], calls, json.loads(store.read(paths.changes_uri(facts["plan"]))))


def compare(one: Done, other: Done) -> tuple[dict[str, float], int]:
    """Share of equal rows of each kind of array, and the chunks in all."""
    return arrays.compare(one.plan, other.plan)
