"""In the browser, with real stages: a new object in a bucket becomes a version that a person rejects, then approves,
and takes back.

It takes minutes, so it is slow, and needs Chromium.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import FLAGS, find_browser
from live_airflow import REPOSITORY, LiveAirflow, wait_for
from playwright.sync_api import FrameLocator, Page, expect, sync_playwright
from seaweedfs import S3, seaweedfs
from test_scheduler import REAL_STAGES, stage_settings
from test_steering import APPROVE, ends, runs, stored_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ACTIONS = ("retro_rollback", "retro_prune")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("store"), tls=False) as started:
        yield started


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Iterator[LiveAirflow]:
    """With version 1 of the dataset ``news``."""
    home = tmp_path_factory.mktemp("airflow")
    settings = stage_settings()
    place = {"RETRO_ROOT": f"{s3.bucket}/root", "RETRO_DATASET": "news", "RETRO_CORPUS": f"{s3.bucket}/corpus"}
    environment = {
        **(s3.environment | settings | place),
        "RETRO_STAGE_COMMAND": str(REAL_STAGES),
        "RETRO_APPROVE": "yes",
        "RETRO_REFRESH_WATCH": place["RETRO_CORPUS"],
        "RETRO_REFRESH_WATCH_SECONDS": "3",
        # Airflow watches the assets of a DAG from the first parse on that finds it unpaused.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "20",
    }
    put(s3, "a", 0)
    put(s3, "b", 3)
    flags = ("--root", place["RETRO_ROOT"], "--dataset", "news", "--corpus", place["RETRO_CORPUS"])
    model = ("--model", settings["RETRO_MODEL"], "--tokenizer", settings["RETRO_TOKENIZER"])
    subprocess.run([REAL_STAGES, "build", *flags, *model], check=True, env=os.environ | environment)
    airflow = LiveAirflow(home, environment, dag="retro_refresh", other_dags=ACTIONS)
    try:
        airflow.start()
        airflow.start_triggerer()
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture
def page() -> Iterator[Page]:
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def put(s3: S3, name: str, first: int) -> None:
    """Write three documents to an object of the corpus."""
    from pydoc_data.topics import topics

    texts = [text for _, text in sorted(topics.items())][first : first + 3]
    data = "".join(json.dumps({"text": text[:2000]}) + "\n" for text in texts).encode()
    code = "import sys; from retro_ops.storage import store; store.write(sys.argv[1], sys.stdin.buffer.read())"
    python = REPOSITORY / ".venv/stages/bin/python"
    words = [python, "-c", code, f"{s3.bucket}/corpus/{name}.jsonl"]
    subprocess.run(words, input=data, check=True, env=os.environ | s3.environment, cwd=REPOSITORY)


def decide(airflow: LiveAirflow, page: Page, run: str, choice: str, ended: int) -> None:
    """Answer the request of ``run`` on the page of its task. ``ended``: see ``test_steering.decide``."""

    def waits() -> bool:
        return airflow.states(run).get((APPROVE, -1)) == "awaiting_input"

    wait_for(waits, explain=lambda: str(airflow.states(run)))
    wait_for(lambda: ends(airflow) >= ended)
    page.goto(f"{airflow.url}/dags/retro_refresh/runs/{run}/tasks/{APPROVE}/required_actions")
    expect(page.get_by_text("Publish news?")).to_be_visible()
    expect(page.get_by_text("1 added: c")).to_be_visible()
    page.screenshot(path=screenshot(f"approval-{choice.lower()}"))
    page.get_by_role("button", name=choice, exact=True).click()
    wait_for(lambda: not waits())


def screenshot(name: str) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS", REPOSITORY / ".run/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"


def dataset(airflow: LiveAirflow, page: Page) -> FrameLocator:
    """The page of the dataset, within Airflow."""
    page.goto(f"{airflow.url}/dags")
    page.get_by_role("link", name="RETRO", exact=True).click()
    frame = page.frame_locator('iframe[title="RETRO"]')
    frame.get_by_role("link", name="news", exact=True).click()
    return frame


def current(frame: FrameLocator, version: int) -> None:
    expect(frame.get_by_role("rowheader", name=re.compile(f"^{version} current"))).to_be_visible()


def ended(airflow: LiveAirflow, frame: FrameLocator, dag: str) -> str:
    """State of the only run of ``dag``, which the page says was triggered, once it has ended."""
    expect(frame.get_by_role("heading", name=f"{dag} was triggered")).to_be_visible()

    def state() -> str:
        (run,) = airflow.call("GET", f"dags/{dag}/dagRuns")["dag_runs"]
        return str(run["state"])

    wait_for(lambda: state() in ("success", "failed"))
    return state()


def test_an_object_becomes_a_version_that_people_decide_on(airflow: LiveAirflow, s3: S3, page: Page) -> None:
    wait_for(lambda: "listing" in stored_state(airflow))
    put(s3, "c", 6)
    written = time.monotonic()
    wait_for(lambda: runs(airflow), 60, lambda: "no run within a minute")
    print(f"a run {time.monotonic() - written:.1f} s after the object")
    ((run, kind),) = runs(airflow).items()
    assert kind == "asset_triggered"
    decide(airflow, page, run, "Reject", 1)
    assert airflow.finish(run) == "success"
    assert airflow.states(run)["publish.publish", -1] == "skipped"
    current(dataset(airflow, page), 1)
    body = {"dry_run": False, "dag_run_id": run, "task_ids": [APPROVE], "include_downstream": True}
    airflow.call("POST", "dags/retro_refresh/clearTaskInstances", body | {"only_failed": False})
    decide(airflow, page, run, "Approve", 3)
    assert airflow.finish(run) == "success"
    frame = dataset(airflow, page)
    current(frame, 2)
    frame.get_by_role("link", name="Roll back…").click()
    expect(frame.get_by_text("Make version 1 of news the current one, instead of version 2?")).to_be_visible()
    frame.get_by_role("button", name="Roll back", exact=True).click()
    assert ended(airflow, frame, "retro_rollback") == "success"
    frame = dataset(airflow, page)
    current(frame, 1)
    page.screenshot(path=screenshot("rolled-back"))
    frame.get_by_label("Newest versions to keep").fill("1")
    frame.get_by_role("button", name="Preview what can be removed…").click()
    page.screenshot(path=screenshot("prune"))
    frame.get_by_role("button", name="Preview", exact=True).click()
    assert ended(airflow, frame, "retro_prune") == "success"
    current(dataset(airflow, page), 1)
