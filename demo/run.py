"""Runs the demo: uploads a corpus, triggers the DAG ``retro_dataset``, follows the run and prints its figures."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import make_corpus
import urllib3
from stack import BUCKET, STAGES_BIN, Stack

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store
from retro_ops.versions import history

DAG = "retro_dataset"
DATASET = "demo"
POLL_S = 2
STALLED_S = 900
"""Seconds without any change in a task after which the run is given up. A busy machine may need an hour in all."""

REPEAT_S = 20
FINISHED = ("success", "failed")


def upload_corpus() -> None:
    """Upload the corpus; files with the same content are not written again."""
    with tempfile.TemporaryDirectory() as scratch:
        files = make_corpus.write(Path(scratch))
        for path in files:
            uri = f"s3://{BUCKET}/corpus/{path.relative_to(scratch).as_posix()}"
            if not store.exists(uri) or store.read(uri) != path.read_bytes():
                store.write(uri, path.read_bytes())
        size = sum(path.stat().st_size for path in files)
        print(
            f"Corpus: {len(files)} files, {size / 1e6:.1f} MB of text from this Python installation, s3://{BUCKET}/corpus"
        )


def trigger(stack: Stack) -> str:
    # A date in the run id makes the run easy to find in the UI.
    run_id = f"demo-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    conf = {"dataset": DATASET, "preset": "tiny"}
    stack.api("POST", f"/dags/{DAG}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
    print(f"Triggered {DAG}, two to ten minutes: {run_url(stack, run_id)}", flush=True)
    return run_id


def run_url(stack: Stack, run_id: str) -> str:
    return f"{stack.ui}/dags/{DAG}/runs/{quote(run_id)}"


def watch(stack: Stack, run_id: str) -> None:
    """Print progress until the run ends. If it failed, print the logs of the failed tasks and exit."""
    start, printed, printed_at, changed_at = time.monotonic(), "", 0.0, 0.0
    while True:
        state = stack.api("GET", f"/dags/{DAG}/dagRuns/{quote(run_id)}")["state"]
        tasks = task_instances(stack, run_id)
        line = summary(tasks)
        passed = time.monotonic() - start
        if line != printed:
            print(f"  {passed:4.0f} s  {line}", flush=True)
            printed, printed_at, changed_at = line, passed, passed
        elif passed - printed_at > REPEAT_S:
            print(f"  {passed:4.0f} s  {line}{last_words(stack, run_id, tasks)}", flush=True)
            printed_at = passed
        if state in FINISHED:
            break
        if passed - changed_at > STALLED_S:
            sys.exit(
                f"No task of the run has changed for {STALLED_S // 60} minutes: see {run_url(stack, run_id)}\n"
                "Once it has ended, `make demo` shows its figures: a second run reuses all that it made."
            )
        time.sleep(POLL_S)
    if state == "failed":
        for task in tasks:
            if task["state"] == "failed":
                print_log(stack, run_id, task)
        sys.exit(f"The run failed: see {run_url(stack, run_id)}")
    print(f"The run succeeded in {time.monotonic() - start:.0f} s.")


def task_instances(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    response: Any = stack.api("GET", f"/dags/{DAG}/dagRuns/{quote(run_id)}/taskInstances?limit=1000")
    return list(response["task_instances"])


def summary(tasks: list[dict[str, Any]]) -> str:
    """Progress of the tasks that have started or could, in order: ``plan 1/1 · embed_chunks 3/8 (2 running)``."""
    parts = []
    for task_id in dict.fromkeys(task["task_id"] for task in sorted(tasks, key=lambda t: t["start_date"] or "~")):
        states = Counter(task["state"] for task in tasks if task["task_id"] == task_id)
        if set(states) <= {None, "none", "skipped"}:
            continue
        states["waiting"] = states.pop("queued", 0) + states.pop("scheduled", 0)
        notes = ", ".join(f"{states[s]} {s}" for s in ("running", "waiting", "up_for_retry", "failed") if states[s])
        parts.append(
            f"{task_id.split('.')[-1]} {states['success']}/{states.total()}" + (f" ({notes})" if notes else "")
        )
    unfinished = [part for part in parts if "(" in part]
    return " · ".join(unfinished or parts[-1:]) or "waiting for the scheduler"


def last_words(stack: Stack, run_id: str, tasks: list[dict[str, Any]]) -> str:
    """The last line in the log of a running task, to tell a long task from one that hangs."""
    running = [task for task in tasks if task["state"] == "running"]
    try:
        lines = log_lines(stack, run_id, running[0]) if running else []
    except (RuntimeError, urllib3.exceptions.HTTPError):  # The task was cleared, or the server is busy.
        lines = []
    return f": {lines[-1]}" if lines else ""


def log_lines(stack: Stack, run_id: str, task: dict[str, Any]) -> list[str]:
    path = f"/dags/{DAG}/dagRuns/{quote(run_id)}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
    log: Any = stack.api("GET", f"{path}?map_index={task['map_index']}")
    return [str(entry["event"] if isinstance(entry, dict) else entry) for entry in log["content"]]


def print_log(stack: Stack, run_id: str, task: dict[str, Any]) -> None:
    print(f"--- {task['task_id']} [{task['map_index']}], try {task['try_number']}")
    for line in log_lines(stack, run_id, task)[-15:]:
        print(f"    {line}")


def print_figures(plan: Plan) -> None:
    """Print counts, seconds and rates of each stage, from its reports."""
    print(f"\nDataset: {paths.dataset_folder(plan.root, plan.dataset)}")
    for split in plan.splits():
        print(f"  {split:5} spec: {paths.dataset_spec_uri(plan, split)}")
    print(f"\n  {'stage':22}{'shards':>7}{'work':>26}{'seconds':>10}{'rate':>14}")
    names = [shard.name for shard in plan.shards]
    rows: list[tuple[str, list[str | None], str]] = [
        ("tokenize-and-chunk", [*names], "documents"),
        ("embed-chunks", [*names], "chunks"),
        ("train-faiss-index", [None], "training_vectors"),
        ("build-faiss-index", [*names], "vectors"),
        ("merge-indexes", [None], "vectors"),
        ("tune-search", [None], "queries"),
        ("retrieve-neighbours", [*names], "rows"),
        ("describe", [None], "sampled_rows"),
    ]
    full = total = 0
    for stage, shards, unit in rows:
        reports = [report.read(paths.report_uri(plan, stage, shard)) or {} for shard in shards]
        count, seconds = sum(r["counts"][unit] for r in reports), sum(r["seconds"] for r in reports)
        work = f"{count:,} {unit.replace('_', ' ')}"
        print(f"  {stage:22}{len(shards):>7}{work:>26}{seconds:>10.1f}{count / max(seconds, 1e-9):>12,.0f}/s")
        if stage == "retrieve-neighbours":
            full, total = sum(r["counts"]["full_rows"] for r in reports), count
    k = plan.parameters.num_neighbours
    print(f"  Rows with all {k} neighbours: {full / max(total, 1):.2%} of {total:,}")
    for split, figures in json.loads(store.read(paths.card_uri(plan, "json")))["quality"].items():
        print(f"  Recall@{k} of {split}: {figures['recall']:.4f} on {figures['sampled_rows']:,} rows")
    print("  (Seconds are summed over shards. Reused outputs count the time of the run that built them.)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    run_dir = parser.parse_args().run_dir
    stack = Stack(run_dir)
    os.environ.update(stack.environment())
    upload_corpus()
    run_id = trigger(stack)
    watch(stack, run_id)
    root = os.environ["RETRO_ROOT"]
    plan = read_plan(paths.plan_uri(root, DATASET, run_id))
    print_figures(plan)
    print(f"\nPublished as version {history.read(root, DATASET).current}. Three chunks and their nearest neighbours:")
    show = [str(STAGES_BIN / "retro-ops"), "show", "--spec", paths.dataset_spec_uri(plan, "train"), "--rows", "3"]
    subprocess.run(show, check=True)
    card = Path(run_dir, "card.html")
    card.write_bytes(store.read(paths.card_uri(plan, "html")))
    print(f"\nDataset card (open in a browser): {card.resolve()}")
    print(f"Run in Airflow: {run_url(stack, run_id)}")
    print('Work with its store in this shell: eval "$(.venv/stages/bin/python demo/stack.py env)"')
    print("Stop everything: make down")


if __name__ == "__main__":
    try:
        main()
    except urllib3.exceptions.HTTPError as error:
        sys.exit(f"Airflow no longer answers ({error}). If `make down` did not stop it, see the logs in .run/logs")
