"""In the browser: fixing a failed night, repairing a shard, and backfilling days."""

import gzip
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from demo_stack import REPOSITORY, STAGES_PYTHON, Demo
from playwright.sync_api import Locator, Page, expect

RUN_TIMEOUT_S = 300
BROKEN = "corpus/train/03_news.jsonl.gz"


def news() -> bytes:
    texts = (f"Bulletin {number}: the train to the coast leaves at {number} o'clock. " * 20 for number in range(5))
    return gzip.compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts), mtime=0)


def upload(demo: Demo, key: str, data: bytes) -> None:
    code = "import sys; from retro_ops.storage import store; store.write(sys.argv[1], sys.stdin.buffer.read())"
    environment = os.environ | demo.settings | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{demo.settings['S3_PORT']}"}
    environment |= {"AWS_DEFAULT_REGION": "us-east-1"}
    command = [STAGES_PYTHON, "-c", code, f"s3://retro/{key}"]
    subprocess.run(command, input=data, check=True, env=environment, cwd=REPOSITORY)


def call(page: Page, demo: Demo, path: str, body: Any = None) -> Any:
    token = page.request.get(f"{demo.ui}/auth/token").json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{demo.ui}/api/v2/{path}"
    answer = page.request.post(url, data=body, headers=headers) if body else page.request.get(url, headers=headers)
    assert answer.ok, answer.text()
    return answer.json()


def finish(page: Page, demo: Demo, dag: str, run_id: str) -> str:
    """State of the run at its end."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while (state := call(page, demo, f"dags/{dag}/dagRuns/{run_id}")["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline, f"{dag}, {run_id}: still {state}"
        time.sleep(2)
    return str(state)


def ran(page: Page, demo: Demo, dag: str, run_id: str, task: str) -> int:
    """Number of instances of ``task`` that succeeded."""
    rows = call(page, demo, f"dags/{dag}/dagRuns/{run_id}/taskInstances?limit=200")["task_instances"]
    return sum(row["task_id"] == task and row["state"] == "success" for row in rows)


def clear(page: Page, url: str) -> Locator:
    """The dialog that clears a task instance, its downstream tasks included."""
    page.goto(url)
    page.get_by_role("button", name="Press shift+c to clear").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Downstream", exact=True)).to_be_visible()
    expect(dialog.get_by_text("publish.publish")).to_be_visible()
    return dialog


@pytest.mark.timeout(1500)
def test_a_failed_night_is_fixed(page: Page, demo: Demo, screenshots: Path) -> None:
    upload(demo, BROKEN, news()[:100])
    dag, run_id = "retro_refresh", "night-with-a-broken-file"
    call(page, demo, f"dags/{dag}/dagRuns", {"dag_run_id": run_id, "logical_date": None})
    assert finish(page, demo, dag, run_id) == "failed"
    tasks = f"{demo.ui}/dags/{dag}/runs/{run_id}/tasks"
    page.goto(f"{tasks}/gate")
    expect(page.get_by_text("03_news (map index 0)").first).to_be_visible()
    page.screenshot(path=screenshots / "gate.png")
    clear(page, f"{tasks}/shards.tokenize_and_chunk/mapped/0")
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / "clear.png")
    # The fixed file differs from the file in the plan of the run, so the plan is cleared first.
    upload(demo, BROKEN, news())
    clear(page, f"{tasks}/plan").get_by_role("button", name="Confirm").click()
    page.wait_for_timeout(3000)
    assert finish(page, demo, dag, run_id) == "success"
    assert ran(page, demo, dag, run_id, "shards.embed_chunks") == 1
    page.goto(f"{demo.ui}/dags/{dag}/runs/{run_id}")
    expect(page.get_by_text("shard 03_news").first).to_be_visible()
    page.screenshot(path=screenshots / "refresh_grid.png")


@pytest.mark.timeout(1500)
def test_a_shard_is_repaired_from_the_form(page: Page, demo: Demo, screenshots: Path) -> None:
    page.goto(f"{demo.ui}/dags/retro_repair")
    page.get_by_role("button", name="Trigger Dag").click()
    form = page.get_by_role("dialog")
    form.get_by_placeholder("Enter each string on a new line").fill("val_code")
    page.screenshot(path=screenshots / "repair_form.png")
    form.get_by_role("button", name="Trigger", exact=True).click()
    expect(form).to_be_hidden()
    (run_id,) = (run["dag_run_id"] for run in call(page, demo, "dags/retro_repair/dagRuns")["dag_runs"])
    assert finish(page, demo, "retro_repair", run_id) == "success"
    assert ran(page, demo, "retro_repair", run_id, "shards.embed_chunks") == 1
    # Training rows do not see validation chunks.
    assert ran(page, demo, "retro_repair", run_id, "neighbours.retrieve_neighbours") == 2
    page.goto(f"{demo.ui}/dags/retro_repair/runs/{run_id}")
    expect(page.get_by_text("shard val_code").first).to_be_visible()
    page.screenshot(path=screenshots / "repair_grid.png")


@pytest.mark.timeout(900)
def test_missed_days_are_backfilled(page: Page, demo: Demo, screenshots: Path) -> None:
    """Airflow offers a backfill where a DAG has a schedule."""
    demo.restart(RETRO_REFRESH_SCHEDULE="0 3 * * *")
    page.goto(f"{demo.ui}/dags/retro_refresh")
    page.get_by_role("button", name="Trigger Dag").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Backfill", exact=True).click()
    for day, minute in (("2026/03/02", "00:00"), ("2026/03/03", "23:59")):
        dialog.get_by_text("Select date and time").first.click()
        for field, value in (("YYYY/MM/DD", day), ("HH:mm", minute)):
            page.get_by_placeholder(field).fill(value)
            page.get_by_placeholder(field).press("Enter")
        page.keyboard.press("Escape")
    dialog.get_by_text("Missing and Errored Runs").click()
    expect(dialog.get_by_text("2 runs will be triggered")).to_be_visible()
    page.screenshot(path=screenshots / "backfill.png")
    dialog.get_by_role("button", name="Run Backfill").click()
    runs = [f"backfill__2026-03-0{day}T03:00:00+00:00" for day in (3, 4)]
    page.wait_for_timeout(5000)
    assert {finish(page, demo, "retro_refresh", run_id) for run_id in runs} == {"success"}
