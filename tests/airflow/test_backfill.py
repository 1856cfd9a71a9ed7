"""Some days by `airflow backfill create`, one of which fails and is reprocessed. Real stages, a real scheduler."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from live_airflow import REPOSITORY, LiveAirflow, wait_for
from test_scheduler import HERE, REAL_STAGES, Door, stage_settings

from retro_ops.plan import paths
from retro_ops.plan.plan import plan_from_json

DAYS = [f"2026-03-{day:02}" for day in range(2, 6)]
FAILS = DAYS[1]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file for each day."""
    from pydoc_data.topics import topics

    texts = [text[:1500] for _, text in sorted(topics.items())]
    for number, day in enumerate(DAYS):
        path = tmp_path / "corpus" / day / "news.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[number * 3 : number * 3 + 3]))
    return tmp_path / "corpus"


@pytest.fixture
def airflow(tmp_path: Path) -> Iterator[LiveAirflow]:
    assert REAL_STAGES.exists(), f"{REAL_STAGES} is missing: make the stage environment first"
    (tmp_path / "door").mkdir()
    live = LiveAirflow(
        tmp_path / "airflow",
        {
            "RETRO_STAGE_COMMAND": f"{sys.executable} {HERE / 'door_stage.py'}",
            "RETRO_TEST_DOOR": str(tmp_path / "door"),
            "RETRO_TEST_STAGE": str(REAL_STAGES),
            "RETRO_RETRY_DELAY": "0.1",
            # Far from now, so that no night falls into the test.
            "RETRO_REFRESH_SCHEDULE": f"0 {(datetime.now(UTC).hour + 12) % 24} * * *",
            "RETRO_ROOT": str(tmp_path / "root"),
            "RETRO_DATASET": "news",
            **stage_settings(),
        },
        dag="retro_refresh",
    )
    live.home.mkdir()
    try:
        live.start()
        yield live
    finally:
        live.stop()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_days_give_the_versions_of_as_many_nights(airflow: LiveAirflow, corpus: Path, tmp_path: Path) -> None:
    door = Door(tmp_path / "door")
    # No scheduled night runs during the backfill.
    conf = {"corpus": f"{corpus}/{{date}}/*.jsonl", "index_type": "Flat", "target_recall": 1, "device": "cpu"}
    nightly: list[Any] = []
    beside = threading.Thread(target=lambda: nightly.extend(without_airflow(tmp_path / "nightly", conf)))
    airflow.backfill(DAYS[0], DAYS[-1], "none", conf)
    wait_for(lambda: airflow.runs().get(FAILS) == "running", 600, lambda: str(airflow.runs()))
    held = door.fail("describe", "-")
    wait_for(lambda: airflow.runs()[FAILS] == "failed", 300, lambda: str(airflow.runs()))
    held.unlink()
    wait_for(lambda: ended(airflow, DAYS[-1]), 1500, lambda: str(airflow.runs()))
    days = {day: state for day, state in airflow.runs().items() if day in DAYS}
    assert days == {day: "failed" if day == FAILS else "success" for day in DAYS}
    assert [entry["as_of"] for entry in published(tmp_path / "root")] == [day for day in DAYS if day != FAILS]

    beside.start()
    airflow.backfill(DAYS[0], DAYS[-1], "failed", conf)
    wait_for(lambda: airflow.runs()[FAILS] == "success", 600, lambda: str(airflow.runs()))
    beside.join()
    made = published(tmp_path / "root")
    assert [entry["as_of"] for entry in made] == [*(day for day in DAYS if day != FAILS), FAILS]
    assert json.loads(Path(paths.current_uri(str(tmp_path / "root"), "news")).read_text())["as_of"] == DAYS[-1]
    assert [entry["as_of"] for entry in nightly] == DAYS
    for entry in made:
        (same,) = (other for other in nightly if other["as_of"] == entry["as_of"])
        assert arrays(tmp_path / "root", entry) == arrays(tmp_path / "nightly", same)


def ended(airflow: LiveAirflow, day: str) -> bool:
    return airflow.runs().get(day) in ("success", "failed")


def without_airflow(root: Path, conf: dict[str, Any]) -> list[dict[str, Any]]:
    """Run these days one after the other, without Airflow."""
    model = stage_settings()["RETRO_MODEL"]
    program = f"""
import sys
from retro_ops.cli import main
place = ["--root", {str(root)!r}, "--dataset", "news"]
for day in {DAYS!r}:
    first = ["--corpus", {conf["corpus"]!r}, "--index-type", "Flat", "--target-recall", "1",
             "--tokenizer", {model!r}, "--model", {model!r}, "--device", "cpu"] if day == {DAYS[0]!r} else []
    if code := main(["build", *place, "--run", day, "--refresh", "--as-of", day, *first]):
        sys.exit(code)
"""
    python = REAL_STAGES.parent / "python"
    subprocess.run([python, "-c", program], cwd=REPOSITORY, check=True, capture_output=True)
    return published(root)


def published(root: Path) -> list[dict[str, Any]]:
    """Entries of all versions, by number."""
    current = json.loads(Path(paths.current_uri(str(root), "news")).read_text())
    return sorted([*current.pop("history"), current], key=lambda entry: int(entry["version"]))


def arrays(root: Path, entry: dict[str, Any]) -> dict[str, bytes]:
    """Every array that a trainer reads of a version, and the distances."""
    folder = root / "news"
    uri = str(folder / entry["plan"])
    plan = plan_from_json(Path(uri).read_text(), uri)
    found = {}
    for shard in plan.shards:
        files = {**paths.chunks_files(plan, shard.name), "neighbours": paths.neighbours_uri(plan, shard.name)}
        files["distances"] = paths.distances_uri(files["neighbours"])
        found |= {f"{shard.name}/{name}": Path(uri).read_bytes() for name, uri in files.items()}
    return found
