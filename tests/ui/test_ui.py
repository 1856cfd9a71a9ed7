"""In the browser: the trigger form, the grid and the graph of a run."""

import time
from pathlib import Path
from typing import Any

from demo_stack import Demo
from playwright.sync_api import Page, expect

DAG = "retro_dataset"
SECTIONS = ("Recipe instead of a corpus", "Documents and chunks", "Embedding", "Index and neighbours", "How it runs")
TASKS = ("plan", "tokenize_and_chunk", "embed_chunks", "gate", "train_faiss_index", "retrieve_neighbours", "publish")
RUN_TIMEOUT_S = 600
SHARDS = 8


def _runs(page: Page, ui: str) -> list[dict[str, Any]]:
    token = page.request.get(f"{ui}/auth/token").json()["access_token"]
    answer = page.request.get(f"{ui}/api/v2/dags/{DAG}/dagRuns", headers={"Authorization": f"Bearer {token}"})
    return list(answer.json()["dag_runs"])


def _open_graph(page: Page, ui: str, run_id: str) -> None:
    page.goto(f"{ui}/dags/{DAG}/runs/{run_id}")
    page.get_by_role("button", name="Show Graph").click()
    page.get_by_role("button", name="Expand all task groups").click()


def test_the_form_explains_itself_and_starts_a_run(page: Page, demo: Demo, screenshots: Path) -> None:
    before = {run["dag_run_id"] for run in _runs(page, demo.ui)}
    page.goto(f"{demo.ui}/dags/{DAG}")
    page.get_by_role("button", name="Trigger Dag").click()
    form = page.get_by_role("dialog")
    for section in SECTIONS:
        expect(form.get_by_text(section, exact=True)).to_be_visible()
    form.get_by_text("Embedding", exact=True).click()
    expect(form.get_by_role("combobox", name="Device")).to_be_visible()
    form.get_by_text("Embedding", exact=True).click()
    page.screenshot(path=screenshots / "trigger-form.png")
    trigger = form.get_by_role("button", name="Trigger", exact=True)
    expect(trigger).to_be_enabled()
    trigger.click()
    expect(form).to_be_hidden()
    deadline = time.monotonic() + RUN_TIMEOUT_S
    states: list[str] = []
    while time.monotonic() < deadline and states not in (["success"], ["failed"]):
        time.sleep(2)
        states = [run["state"] for run in _runs(page, demo.ui) if run["dag_run_id"] not in before]
    assert states == ["success"]


def test_grid_and_graph_show_every_shard_by_name(page: Page, demo: Demo, screenshots: Path) -> None:
    run_id = min(run["dag_run_id"] for run in _runs(page, demo.ui) if run["dag_run_id"].startswith("demo-"))
    page.goto(f"{demo.ui}/dags/{DAG}/runs/{run_id}")
    expect(page.get_by_text("shard val_docs").first).to_be_visible()
    expect(page.get_by_text("Success").first).to_be_visible()
    page.screenshot(path=screenshots / "grid.png")
    _open_graph(page, demo.ui, run_id)
    for task in TASKS:
        expect(page.locator(".react-flow__node").get_by_text(task).first).to_be_attached()
    expect(page.locator(".react-flow__node").get_by_text(f"retrieve_neighbours [{SHARDS}]").first).to_be_attached()
    page.wait_for_timeout(1500)  # the graph glides into place
    page.screenshot(path=screenshots / "graph.png")
