"""Simulates a run of `retro_dataset` at a large corpus, task by task, and says what the workers wait for.

PYTHONPATH=.:plugins .venv/airflow/bin/python benchmarks/simulate.py --chunks 2000000000 --slots 64

1. The tasks and their dependencies are those of the DAG, with its mapped tasks and trigger rules.
2. A task of a stage takes the seconds that `plan` expects (``plan.traffic``), shared among shards by their size.
3. Each task also holds its slot while it starts, and begins some time after the tasks before it have ended.
4. Whenever a slot is free it takes the ready task with the most tasks after it, then the smallest map index, as
   Airflow's scheduler does.
"""

import argparse
import heapq
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import works
from airflow.sdk import TriggerRule

from retro_ops.plan import estimate, grid, traffic
from retro_ops.plan.stage_graph import STAGES

START_S = 1.5
"""A task's start in its slot before its stage works: a process, imports, the plan (docs/deployment.md)."""

LATENCY_S = 2.0
"""From the end of a task to the start of the next one in a free slot: a loop of the scheduler and the queue."""

MEASURED_CORES = 2
"""Cores with which the rate of tokenising was measured."""

SMALL_S = 0.5
"""A task that only reads plans and reports."""


SHOWN_S = 60
"""Tasks that take less together are not listed."""

Key = tuple[str, int]
"""Task id and map index."""


@dataclass
class Task:
    """A mapped instance of a task of the DAG, or the only one."""

    name: str
    index: int
    seconds: float
    weight: int
    waits_for: set[Key] = field(default_factory=set)
    any_of_them: bool = False


def cell_shares(work: estimate.Work, slots: int) -> list[float]:
    """Shares of the cells of the grid, by the vectors and the queries that each reads."""
    shape = grid.choose(max(work.indexed.values()), work.dimension, traffic.GPU_BYTES, slots, traffic.MOST_TASKS)
    assert shape
    read = [
        work.indexed[cell.split] / cell.parts + work.chunks[cell.split] / cell.ranges
        for cell in grid.cells(shape, work.chunks)
    ]
    return [of / sum(read) for of in read]


def seconds_of_tasks(work: estimate.Work, index: estimate.Index, slots: int, cores: int) -> dict[str, list[float]]:
    """Seconds of each task by stage. ``cores``: of a worker, which tokenise side by side."""
    moved = traffic.traffic(work, index, slots)
    computing = dict(estimate.estimate(work, index).seconds["cuda"])
    computing["tokenize-and-chunk"] *= MEASURED_CORES / cores
    found = {}
    for stage, seconds in traffic.seconds_alone(computing, moved).items():
        over, tasks = STAGES[stage].maps_over, moved[stage].tasks
        shares = (
            works.shard_shares(work.shards, work.largest_shard / work.total) if over == "shard" else [1 / tasks] * tasks
        )
        shares = cell_shares(work, slots) if over == "cell" else shares
        found[stage] = [seconds * share for share in shares]
    return found


def tasks_of(dag: Any, seconds: dict[str, list[float]], unneeded: set[str]) -> dict[Key, Task]:
    """All task instances. ``unneeded``: tasks that this run skips."""
    made: dict[str, list[Task]] = {}
    for task in dag.tasks:
        stage = task.task_id.rpartition(".")[2].replace("_", "-")
        took = seconds.get(stage, [SMALL_S])
        if task.task_id in unneeded:
            took = []
        weight = len(task.get_flat_relative_ids(upstream=False))
        made[task.task_id] = [Task(task.task_id, number, of, weight) for number, of in enumerate(took)]
    for task in dag.tasks:
        for instance in made[task.task_id]:
            instance.any_of_them = task.trigger_rule == TriggerRule.ONE_SUCCESS
            for before in task.upstream_task_ids:
                group = before.startswith("shards.") and task.task_id.startswith("shards.")
                waits = [made[before][instance.index]] if group else made[before]
                instance.waits_for |= {(of.name, of.index) for of in waits}
    return {(of.name, of.index): of for instances in made.values() for of in instances}


@dataclass(frozen=True)
class Run:
    began: dict[Key, float]
    ended: dict[Key, float]

    @property
    def seconds(self) -> float:
        return max(self.ended.values())


def simulate(tasks: dict[Key, Task], slots: int) -> Run:
    after = defaultdict(list)
    for key, task in tasks.items():
        for before in task.waits_for:
            after[before].append(key)
    left = {key: len(task.waits_for) for key, task in tasks.items()}
    coming = [(0.0, key) for key, count in left.items() if not count]  # Times at which tasks are queued.
    queued = {key for _, key in coming}
    ready: list[tuple[int, int, str]] = []
    running: list[tuple[float, Key]] = []
    began, ended, now = {}, {}, 0.0
    while coming or running:
        now = min(of[0][0] for of in (coming, running) if of)
        while running and running[0][0] <= now:
            _, key = heapq.heappop(running)
            ended[key] = now
            for later in after[key]:
                left[later] = 0 if tasks[later].any_of_them else left[later] - 1
                if left[later] <= 0 and later not in queued:
                    queued.add(later)
                    heapq.heappush(coming, (now + LATENCY_S, later))
        while coming and coming[0][0] <= now:
            name, number = heapq.heappop(coming)[1]
            heapq.heappush(ready, (-tasks[name, number].weight, number, name))
        while ready and len(running) < slots:
            _, number, name = heapq.heappop(ready)
            began[name, number] = now
            heapq.heappush(running, (now + START_S + tasks[name, number].seconds, (name, number)))
    assert len(ended) == len(tasks), f"never ready: {sorted(set(tasks) - set(ended))[:5]}"
    return Run(began, ended)


def skipped(dag: Any, seconds: dict[str, list[float]]) -> set[str]:
    """Tasks that have nothing to do: those of a recipe and of duplicates, and mapped ones that ``seconds`` lacks."""
    found = {task.task_id for task in dag.tasks if task.task_id.startswith(("sources.", "duplicates."))}
    lacking = [stage.replace("-", "_") for stage, of in STAGES.items() if of.maps_over and stage not in seconds]
    found |= {task.task_id for task in dag.tasks if task.task_id.rpartition(".")[2] in lacking}
    return found | (set() if "search-parts" in seconds else {"cells.list_cells"})


def report(tasks: dict[Key, Task], run: Run, slots: int) -> None:
    worked, has = sum(task.seconds for task in tasks.values()), run.seconds * slots
    print(f"{len(tasks):,} tasks on {slots} slots: {run.seconds / 3600:.2f} h, workers busy {worked / has:.0%} of it")
    print(f"starts of tasks take {len(tasks) * START_S / has:.1%}\n")
    print("| task | tasks | from, min | to, min | longest, min | slot-hours |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(name for name, _ in sorted(run.began, key=lambda key: run.began[key])):
        mine = [key for key in tasks if key[0] == name]
        took = [tasks[key].seconds for key in mine]
        if sum(took) >= SHOWN_S:
            first, last = min(run.began[key] for key in mine), max(run.ended[key] for key in mine)
            minutes = " | ".join(f"{of / 60:.1f}" for of in (first, last, max(took)))
            print(f"| {name} | {len(mine)} | {minutes} | {sum(took) / 3600:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=2 * 10**9)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--cores", type=int, default=16, help="of a worker")
    parser.add_argument("--largest", type=float, default=0.02, help="share of the largest shard")
    arguments = parser.parse_args()
    from retro_airflow.dags.retro_dataset import dag

    work = works.massive_open_text(arguments.chunks, arguments.largest)
    seconds = seconds_of_tasks(work, works.ORIGINAL_INDEX, arguments.slots, arguments.cores)
    tasks = tasks_of(dag, seconds, skipped(dag, seconds))
    report(tasks, simulate(tasks, arguments.slots), arguments.slots)


if __name__ == "__main__":
    main()
