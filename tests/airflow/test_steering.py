"""Runs that people and files steer: approval, a watched corpus, notifications. A real scheduler, stub stages."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_airflow import REPOSITORY, LiveAirflow, wait_for
from test_scheduler import Door

from retro_ops.plan import paths

HERE = Path(__file__).resolve().parent
APPROVE = "publish.approve"

RUNTIME = """
deadline_minutes = 0.02
[[notifications]]
notifier = "posting_notifier.PostingNotifier"
arguments = {{ url = "{url}/failure", text = "{{{{ dag_run.run_id }}}}: {{{{ failure }}}}\\n{{{{ page }}}}" }}
[[notifications]]
notifier = "posting_notifier.PostingNotifier"
on = ["deadline"]
arguments = {{ url = "{url}/deadline", text = "late" }}
"""


@pytest.fixture(scope="module")
def received() -> Iterator["Posts"]:
    """Path and text of everything that is posted to ``received.url``."""
    posts = Posts()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    posts.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield posts
    server.shutdown()


class Posts(list[tuple[str, str]]):
    url = ""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.jsonl").write_text('{"text": "a document"}\n')
    return folder


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return Door(tmp_path_factory.mktemp("door"))


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, door: Door, corpus: Path, received: Posts
) -> Iterator[LiveAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "runtime.toml").write_text(RUNTIME.format(url=received.url))
    environment = {
        "PYTHONPATH": f"{REPOSITORY}:{HERE}",
        "RETRO_RUNTIME_FILE": str(home / "runtime.toml"),
        "RETRO_STAGE_COMMAND": f"{sys.executable} {HERE / 'door_stage.py'}",
        "RETRO_TEST_STAGE": f"{sys.executable} {HERE / 'stub_stage.py'}",
        "RETRO_TEST_DOOR": str(door.folder),
        "RETRO_STAGE_VARIABLES": "RETRO_TEST_STAGE,RETRO_TEST_DOOR",
        "RETRO_ROOT": str(home / "datasets"),
        "RETRO_DATASET": "demo",
        "RETRO_CORPUS": str(corpus),
        "RETRO_REFRESH_WATCH": str(corpus),
        "RETRO_REFRESH_WATCH_SECONDS": "3",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "http", "url": received.url, "endpoint": "lineage"}),
        # Airflow watches the assets of a DAG from the first parse on that finds it unpaused.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "20",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    }
    airflow = LiveAirflow(home, environment, dag="retro_refresh")
    try:
        airflow.start()
        airflow.start_triggerer()
        yield airflow
    finally:
        airflow.stop()


def decide(airflow: LiveAirflow, run: str, choice: str, ended: int) -> dict[str, Any]:
    """Answer the request of a run once it waits; the request.

    Not before the scheduler has seen the task's process end for the ``ended``th time: it would take that for the end
    of the resumed task.
    """
    wait_for(
        lambda: airflow.states(run).get((APPROVE, -1)) == "awaiting_input", explain=lambda: str(airflow.states(run))
    )
    wait_for(lambda: ends(airflow) >= ended)
    path = f"dags/retro_refresh/dagRuns/{run}/taskInstances/{APPROVE}/-1/hitlDetails"
    request = airflow.call("GET", path)
    airflow.call("PATCH", path, {"chosen_options": [choice], "params_input": {}})
    return dict(request)


def ends(airflow: LiveAirflow) -> int:
    """How often the scheduler has seen the process of an approval end."""
    lines = (airflow.home / "scheduler.log").read_text().splitlines()
    return sum("TaskInstance Finished" in line and f"task_id={APPROVE}" in line for line in lines)


def test_a_version_waits_for_approval_is_rejected_and_then_approved(airflow: LiveAirflow, received: Posts) -> None:
    current = Path(paths.current_uri(str(airflow.home / "datasets"), "demo"))
    run = airflow.trigger(approve=True)
    request = decide(airflow, run, "Reject", 1)
    assert request["subject"] == "Publish demo?"
    assert "| Recall, train | - | 90.0 % |" in request["body"]
    assert "- 1 added: `x`" in request["body"]
    assert airflow.finish(run) == "success"
    assert airflow.states(run)["publish.publish", -1] == "skipped"
    assert not current.exists(), "nothing was published"
    note = airflow.call("GET", f"dags/retro_refresh/dagRuns/{run}")["note"]
    assert note.startswith("Dataset demo, [rejected](/plugin/")
    assert note.endswith("nothing was published")
    body = {
        "dry_run": False,
        "dag_run_id": run,
        "task_ids": [APPROVE],
        "include_downstream": True,
        "only_failed": False,
    }
    airflow.call("POST", "dags/retro_refresh/clearTaskInstances", body)
    decide(airflow, run, "Approve", 3)  # Each request takes two processes: one asks, one acts on the answer.
    assert airflow.finish(run) == "success"
    assert current.exists()
    wait_for(lambda: published_events(received), explain=lambda: str([path for path, _ in received]))
    (event,) = published_events(received)
    (output,) = event["outputs"]
    assert output["name"] == str(current.parent)
    assert output["facets"]["version"]["datasetVersion"] == "1"


def published_events(received: Posts) -> list[dict[str, Any]]:
    """OpenLineage events of a published version."""
    events = [json.loads(text) for path, text in received if path == "/lineage"]
    return [event for event in events if event["eventType"] == "COMPLETE" and event["outputs"]]


def test_a_new_file_starts_a_run_whose_failure_is_told(
    airflow: LiveAirflow, door: Door, corpus: Path, received: Posts
) -> None:
    wait_for(lambda: "listing" in stored_state(airflow))
    before = set(runs(airflow))
    door.fail("tokenize-and-chunk", "b")
    (corpus / "b.jsonl").write_text('{"text": "another document"}\n')
    started = time.monotonic()
    wait_for(lambda: set(runs(airflow)) - before, 60, lambda: "no run within a minute")
    print(f"a run {time.monotonic() - started:.1f} s after the file")
    (run,) = set(runs(airflow)) - before
    assert runs(airflow)[run] == "asset_triggered"
    assert airflow.finish(run) == "failed"
    wait_for(lambda: any(path == "/failure" for path, _ in received), explain=lambda: str(received))
    (text,) = [text for path, text in received if path == "/failure"]
    assert f"{run}: 1 of 2 shards are not embedded: b (map index" in text
    assert "b was told to fail" in text
    wait_for(lambda: ("/deadline", "late") in received, explain=lambda: str(received))
    time.sleep(7)
    assert set(runs(airflow)) - before == {run}, "one change starts one run"


def runs(airflow: LiveAirflow) -> dict[str, str]:
    rows = airflow.call("GET", "dags/retro_refresh/dagRuns?limit=100")["dag_runs"]
    return {row["dag_run_id"]: row["run_type"] for row in rows}


def stored_state(airflow: LiveAirflow) -> str:
    (asset,) = airflow.call("GET", "assets?name_pattern=corpus")["assets"]
    return json.dumps(airflow.call("GET", f"assets/{asset['id']}/state-store"))
