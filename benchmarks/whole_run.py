"""Every stage of a run in this process, one after the other, each timed: what the DAGs do, without Airflow."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from retro_ops import layout, store
from retro_ops.cli import main
from retro_ops.plans import read_plan
from retro_ops.specs import Plan

UNTIL_GATE = ("tokenize-and-chunk", "embed-chunks")
FROM_INDEX = ("train-faiss-index", "build-faiss-index", "merge-indexes", "tune-search", "retrieve-neighbours")
TO_PUBLISH = ("write-specs", "describe", "validate", "publish")


class StageFailedError(Exception):
    """A stage ended with an exit code other than 0."""

    def __init__(self, arguments: list[str], code: int) -> None:
        super().__init__(f"{' '.join(arguments)}: exit code {code}")
        self.code = code


@dataclass
class Run:
    """What was done: seconds by stage, and how often each was called for work that was not done yet."""

    plan_uri: str = ""
    seconds: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return read_plan(self.plan_uri)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def stage(self, name: str, *arguments: object) -> None:
        argv = [name, *map(str, arguments)]
        started = time.monotonic()
        code = main(argv)
        self.seconds[name] += time.monotonic() - started
        self.calls[name] += 1
        if code:
            raise StageFailedError(argv, code)


def run(root: str, dataset: str, name: str, *flags: object) -> Run:
    """A whole run with the flags of ``plan``; with ``--refresh`` or ``--repair`` only what is not done yet."""
    done = Run(layout.plan_uri(root, dataset, name))
    incremental = "--refresh" in flags or "--repair" in flags
    done.stage("plan", "--root", root, "--dataset", dataset, "--output", done.plan_uri, *flags)
    done.changes = json.loads(store.read(layout.changes_uri(done.plan_uri)))
    if incremental and done.changes["nothing"]:
        return done
    _stages(done, UNTIL_GATE, incremental)
    if "--refresh" in flags:
        done.stage("check-drift", "--plan", done.plan_uri)
        done.plan_uri = layout.decided_plan_uri(done.plan_uri)
    _stages(done, FROM_INDEX, incremental)
    for stage in TO_PUBLISH:
        more = ["--changed-only"] if stage == "validate" and "--refresh" in flags else []
        done.stage(stage, "--plan", done.plan_uri, *more)
    return done


def _stages(done: Run, stages: tuple[str, ...], incremental: bool) -> None:
    plan = done.plan
    for stage, shard in layout.tasks(plan, stages):
        if incremental and store.exists(layout.report_uri(plan, stage, shard)):
            continue
        done.stage(stage, "--plan", done.plan_uri, *(["--shard", shard] if shard else []))
