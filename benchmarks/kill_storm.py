"""Kills tasks and stages of a real run at random and compares its outputs with those of the demo.

Needs the stack with the demo dataset (``make demo``). Only processes of that stack are killed.
"""

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from run import DAG, DATASET, FINISHED, task_instances
from stack import REPOSITORY, Stack

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.plan import Plan
from retro_ops.storage import store

LAST_TRY = 3
"""Most kills of one task, since each task has four tries."""


def kill_task(stack: Stack, run_id: str, rng: random.Random) -> str | None:
    """Send kill -9 to a task process. The stage goes on, and the retry must find it."""
    running = [
        task
        for task in task_instances(stack, run_id)
        if task["state"] == "running" and task["operator"] == "StageOperator" and task["try_number"] < LAST_TRY
    ]
    if not running:
        return None
    task = rng.choice(running)
    with suppress(ProcessLookupError):
        os.kill(task["pid"], signal.SIGKILL)
    return f"task {task['task_id']} [{task['map_index']}]"


def kill_stage(stack: Stack, rng: random.Random) -> str | None:
    """Send kill -9 to a running stage. The task must be retried."""
    handles: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in (stack.run_dir / "airflow/retro-jobs").glob("*/*/handle.json")
    ]
    running = [handle for handle in handles if Path(f"/proc/{handle['pid']}").exists()]
    if not running:
        return None
    handle = rng.choice(running)
    with suppress(ProcessLookupError, FileNotFoundError):
        for child in Path(f"/proc/{handle['pid']}/task/{handle['pid']}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    return f"stage {handle['name']}"


def differing(found: Plan, expected: Plan) -> tuple[int, list[str]]:
    """The number of compared outputs, and those that are not byte-equal."""
    total, different = 0, []
    for stage in (*stage_graph.SHARD_STAGES, "train-faiss-index", "merge-indexes"):
        for shard in [s.name for s in found.shards] if stage in stage_graph.SHARD_STAGES else [None]:
            reports = [report.read(paths.report_uri(plan, stage, shard)) or {} for plan in (found, expected)]
            for ours, theirs in zip(reports[0]["outputs"], reports[1]["outputs"], strict=True):
                total += 1
                if store.sha256(ours["uri"]) != theirs["sha256"]:
                    different.append(ours["uri"])
    return total, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=REPOSITORY / ".run")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    stack, rng = Stack(arguments.run_dir), random.Random(arguments.seed)
    os.environ.update(stack.environment())
    run_id = f"storm-{int(time.time())}"
    # A new dataset, so that nothing is done yet.
    conf = {"dataset": run_id, "preset": "tiny"}
    stack.api("POST", f"/dags/{DAG}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
    start, kills = time.monotonic(), 0
    while (state := stack.api("GET", f"/dags/{DAG}/dagRuns/{run_id}")["state"]) not in FINISHED:
        time.sleep(rng.uniform(2, 9))
        if kills < arguments.kills:
            victim = kill_task(stack, run_id, rng) if rng.random() < 0.5 else kill_stage(stack, rng)
            if victim:
                kills += 1
                print(f"{time.monotonic() - start:5.0f} s  killed {victim}", flush=True)
    plan = read_plan(paths.plan_uri(os.environ["RETRO_ROOT"], run_id, run_id))
    if state != "success":
        sys.exit(f"the run ended as {state} after {kills} kills")
    total, different = differing(plan, dataclasses.replace(plan, dataset=DATASET))
    print(f"{kills} kills, {time.monotonic() - start:.0f} s: {total} outputs compared, {len(different)} differ")
    if different:
        sys.exit("\n".join(different))


if __name__ == "__main__":
    main()
