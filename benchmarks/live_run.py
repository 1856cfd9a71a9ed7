"""Triggers a DAG in a stack of its own with a real scheduler, waits for the run and prints where its time went."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from run import FINISHED
from stack import Stack

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.storage import read_ahead

PAGE = 100
POLL_S = 5
RUN_TIMEOUT_S = 2 * 3600
SHARD_STAGES = [stage.replace("-", "_") for stage in stage_graph.SHARD_STAGES]


@dataclass(frozen=True)
class Task:
    """A task instance, with times in seconds since 1970."""

    task_id: str
    start: float
    end: float


def task_instances(stack: Stack, dag: str, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        path = f"/dags/{dag}/dagRuns/{quote(run_id)}/taskInstances?limit={PAGE}&offset={len(found)}"
        answer: Any = stack.api("GET", path)
        found += answer["task_instances"]
        if len(found) >= answer["total_entries"] or not answer["task_instances"]:
            return found


def wait(stack: Stack, dag: str, run_id: str) -> None:
    start = time.monotonic()
    while (state := stack.api("GET", f"/dags/{dag}/dagRuns/{quote(run_id)}")["state"]) not in FINISHED:
        if time.monotonic() - start > RUN_TIMEOUT_S:
            sys.exit(f"the run did not end within {RUN_TIMEOUT_S} s")
        time.sleep(POLL_S)
    if state == "failed":
        failed = [task["task_id"] for task in task_instances(stack, dag, run_id) if task["state"] == "failed"]
        sys.exit(f"the run failed: {', '.join(failed[:10])}; see {stack.ui}")


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def covered(tasks: Sequence[Task]) -> float:
    """Seconds during which at least one of ``tasks`` was running."""
    total, until = 0.0, 0.0
    for task in sorted(tasks, key=lambda task: task.start):
        total += max(0.0, task.end - max(task.start, until))
        until = max(until, task.end)
    return total


def work_of(plan_uri: str) -> dict[str, float]:
    """Seconds of work by stage, from the reports of the stages."""
    plan = read_plan(plan_uri)
    tasks = list(stage_graph.tasks(plan, (*stage_graph.stages(plan), "validate")))
    made = read_ahead.side_by_side(lambda of: report.require(paths.report_uri(plan, *of), "it"), tasks)
    work: dict[str, float] = {}
    for (stage, _), found in zip(tasks, made, strict=True):
        work[stage] = work.get(stage, 0.0) + found["seconds"]
    return work


def table(tasks: Sequence[Task], work: dict[str, float], wall: float, shards: int) -> Iterator[str]:
    yield f"{'task':24}{'tasks':>7}{'from first to last':>20}{'in tasks':>12}{'work':>10}{'a shard':>12}"
    for task_id in dict.fromkeys(task.task_id for task in sorted(tasks, key=lambda task: task.start)):
        of = [task for task in tasks if task.task_id == task_id]
        name = task_id.rpartition(".")[2]
        spent, worked = sum(t.end - t.start for t in of), work.get(name.replace("_", "-"))
        span = max(t.end for t in of) - min(t.start for t in of)
        said = "" if worked is None else f"{worked:8.1f} s"
        each = f"{(spent - (worked or 0)) / shards:10.3f} s" if name in SHARD_STAGES else ""
        yield f"{name:24}{len(of):>7}{span:>18.1f} s{spent:>10.1f} s{said:>10}{each:>12}"
    spent, worked = sum(t.end - t.start for t in tasks), sum(work.values())
    yield ""
    yield f"wall time {wall:.0f} s for {shards:,} shards in {len(tasks):,} tasks: {wall / shards:.3f} s a shard"
    yield f"  a task was running in {covered(tasks):.0f} s of it; on average {spent / wall:.1f} were"
    yield f"  in tasks {spent:.0f} s, of which {worked:.0f} s are work as the stages report it; the rest is to start"
    yield f"  processes, load libraries and models, and poll: {(spent - worked) / shards:.3f} s a shard"


@contextmanager
def running(stack: Stack) -> Iterator[None]:
    stack.up()
    try:
        yield
    finally:
        stack.down()


def run_once(stack: Stack, dag: str, run_id: str, conf: dict[str, str], shards: int) -> None:
    """Trigger ``dag``, wait for the run and print the time of its tasks and of the work in them."""
    stack.api("POST", f"/dags/{dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
    wait(stack, dag, run_id)
    run: Any = stack.api("GET", f"/dags/{dag}/dagRuns/{quote(run_id)}")
    rows = [row for row in task_instances(stack, dag, run_id) if row["start_date"]]
    tasks = [Task(row["task_id"], seconds(row["start_date"]), seconds(row["end_date"])) for row in rows]
    work = work_of(paths.plan_uri(os.environ["RETRO_ROOT"], conf["dataset"], run_id))
    wall = seconds(run["end_date"]) - seconds(run["queued_at"])
    print("\n".join(table(tasks, work, wall, shards)), flush=True)


def timed(dataset: str, command: str, *arguments: str) -> None:
    """Run and time ``retro-ops COMMAND`` on the published dataset."""
    from retro_ops.cli import main

    started = time.monotonic()
    code = main([command, "--root", os.environ["RETRO_ROOT"], "--dataset", dataset, *arguments])
    print(f"retro-ops {command}: {time.monotonic() - started:.1f} s, exit code {code}", flush=True)
