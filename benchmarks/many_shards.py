"""Thousands of tiny shards through the DAG ``retro_dataset`` with a real scheduler: what each of them costs.

Starts a stack of its own in FOLDER (see demo/stack.py) and stops it at the end. Every shard has a few documents of real
text that comes with every Python, so that nearly all of the time is what a shard costs whatever it holds.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

import make_corpus
from run import DAG, FINISHED, print_log
from stack import AIRFLOW_BIN, BUCKET, REPOSITORY, Stack

from retro_ops import layout, report, store
from retro_ops.plans import read_plan

DOCUMENTS = 3
CHARACTERS = 400
"""Of each shard, and of each document: some 6 chunks a shard."""

VALIDATION_EVERY = 50
PAGE = 100
POLL_S = 5
RUN_TIMEOUT_S = 2 * 3600
SHARD_STAGES = [stage.replace("-", "_") for stage in layout.SHARD_STAGES]


def pieces() -> Iterator[str]:
    """Sources of the standard library, cut; from the beginning again when they end."""
    while True:
        for _, source in make_corpus._modules():
            yield from (source[start : start + CHARACTERS] for start in range(0, len(source), CHARACTERS))


def upload(shards: int) -> str:
    """``shards`` files below a prefix of their own; every 50th is for validation."""
    prefix, text = f"s3://{BUCKET}/many/{shards}", pieces()
    files = {}
    for number in range(shards):
        split = "val" if number % VALIDATION_EVERY == VALIDATION_EVERY - 1 else "train"
        lines = [json.dumps({"text": piece}) + "\n" for piece in islice(text, DOCUMENTS)]
        files[f"{prefix}/{split}/{number:05}_{'val_' if split == 'val' else ''}code.jsonl"] = "".join(lines).encode()
    store.side_by_side(lambda of: store.write(*of), files.items())
    return prefix


@dataclass(frozen=True)
class Task:
    """A task instance; times in seconds since 1970."""

    task_id: str
    start: float
    end: float


def task_instances(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        path = f"/dags/{DAG}/dagRuns/{quote(run_id)}/taskInstances?limit={PAGE}&offset={len(found)}"
        answer: Any = stack.api("GET", path)
        found += answer["task_instances"]
        if len(found) >= answer["total_entries"] or not answer["task_instances"]:
            return found


def wait(stack: Stack, run_id: str) -> None:
    start = time.monotonic()
    while (state := stack.api("GET", f"/dags/{DAG}/dagRuns/{quote(run_id)}")["state"]) not in FINISHED:
        if time.monotonic() - start > RUN_TIMEOUT_S:
            sys.exit(f"the run did not end within {RUN_TIMEOUT_S} s")
        time.sleep(POLL_S)
    if state == "failed":
        failed = [task for task in task_instances(stack, run_id) if task["state"] == "failed"]
        for task in failed[:3]:
            print_log(stack, run_id, task)
        sys.exit(f"the run failed: {len(failed)} tasks")


def seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def covered(tasks: Sequence[Task]) -> float:
    """Seconds in which at least one of ``tasks`` was running."""
    total, until = 0.0, 0.0
    for task in sorted(tasks, key=lambda task: task.start):
        total += max(0.0, task.end - max(task.start, until))
        until = max(until, task.end)
    return total


def work_of(plan_uri: str) -> dict[str, float]:
    """Seconds of work by stage, as the stages themselves reported them."""
    plan = read_plan(plan_uri)
    tasks = list(layout.tasks(plan, (*layout.CODE_VERSIONS, "validate")))
    made = store.side_by_side(lambda of: report.require(layout.report_uri(plan, *of), "it"), tasks)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--tasks", type=int, help="most tasks a stage (RETRO_MAPPED_TASKS)")
    parser.add_argument("--screenshot", type=Path, help="open the grid of the run in a browser, and save what it shows")
    arguments = parser.parse_args()
    if arguments.tasks:
        os.environ["RETRO_MAPPED_TASKS"] = str(arguments.tasks)
    stack = Stack(arguments.folder / "stack")
    os.environ.update(stack.environment())
    with running(stack):
        started = time.monotonic()
        prefix = upload(arguments.shards)
        print(f"{arguments.shards:,} shards uploaded in {time.monotonic() - started:.0f} s", flush=True)
        dataset, run_id = f"many_{arguments.shards}", f"many-{arguments.shards}-{int(time.time())}"
        conf = {"dataset": dataset, "preset": "tiny", "corpus": f"{prefix}/train", "validation_corpus": f"{prefix}/val"}
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        stack.api("POST", f"/dags/{DAG}/dagRuns", body)
        wait(stack, run_id)
        run: Any = stack.api("GET", f"/dags/{DAG}/dagRuns/{quote(run_id)}")
        rows = [row for row in task_instances(stack, run_id) if row["start_date"]]
        tasks = [Task(row["task_id"], seconds(row["start_date"]), seconds(row["end_date"])) for row in rows]
        work = work_of(layout.plan_uri(os.environ["RETRO_ROOT"], dataset, run_id))
        wall = seconds(run["end_date"]) - seconds(run["queued_at"])
        print("\n".join(table(tasks, work, wall, arguments.shards)), flush=True)
        for command in (("status",), ("export", "--to", str(arguments.folder / "exported"))):
            time_command(command, dataset)
        if arguments.screenshot:
            show = [str(AIRFLOW_BIN / "python"), str(REPOSITORY / "benchmarks/grid_page.py")]
            os.spawnv(os.P_WAIT, show[0], [*show, f"{stack.ui}/dags/{DAG}/runs/{quote(run_id)}", arguments.screenshot])


def time_command(command: Sequence[str], dataset: str) -> None:
    from retro_ops.cli import main as retro_ops

    started = time.monotonic()
    code = retro_ops([command[0], "--root", os.environ["RETRO_ROOT"], "--dataset", dataset, *command[1:]])
    print(f"retro-ops {command[0]}: {time.monotonic() - started:.1f} s, exit code {code}", flush=True)


if __name__ == "__main__":
    main()
