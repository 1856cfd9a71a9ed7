"""Fixtures of the Airflow tests."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow_environment import HERE, let_airflow_warn

if TYPE_CHECKING:
    from retro_ops.plan.plan import Plan


def pytest_configure(config: pytest.Config) -> None:
    let_airflow_warn(config)


@pytest.fixture
def stub_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stub stages behind the door, as RETRO_STAGE_COMMAND; returns the folder of the door."""
    door = tmp_path / "door"
    door.mkdir()
    monkeypatch.setenv("RETRO_STAGE_COMMAND", f"{sys.executable} {HERE / 'door_stage.py'}")
    monkeypatch.setenv("RETRO_TEST_DOOR", str(door))
    monkeypatch.setenv("RETRO_TEST_STAGE", f"{sys.executable} {HERE / 'stub_stage.py'}")
    monkeypatch.setenv("RETRO_JOBS_DIR", str(tmp_path / "jobs"))
    return door


@pytest.fixture
def real_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stages of the stage environment behind the door; returns the folder of the door."""
    from test_scheduler import REAL_STAGES, stage_settings

    assert REAL_STAGES.exists(), f"{REAL_STAGES} is missing: make the stage environment first"
    door = tmp_path / "door"
    door.mkdir()
    settings = {
        "RETRO_STAGE_COMMAND": f"{sys.executable} {HERE / 'door_stage.py'}",
        "RETRO_TEST_DOOR": str(door),
        "RETRO_TEST_STAGE": str(REAL_STAGES),
        "RETRO_JOBS_DIR": str(tmp_path / "jobs"),
        **stage_settings(),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return door


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three training files and one for validation."""
    folder = tmp_path / "corpus"
    for name in ("train/a", "train/b", "train/c", "val/d"):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "a document of {name}"}}\n')
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> "Plan":
    """Two training shards and one for validation."""
    from retro_ops.plan.parameters import Parameters
    from retro_ops.plan.plan import Identity, Plan, Shard, Source, Split

    def shard(name: str, split: Split) -> Shard:
        return Shard(name, split, (Source(name, 1, name),))

    return Plan(
        dataset="d",
        root=str(tmp_path),
        parameters=Parameters(),
        identity=Identity("t", 100, 0, "m", 8),
        shards=(shard("a", "train"), shard("b", "train"), shard("v", "val")),
    )


@pytest.fixture
def uri(plan: "Plan") -> str:
    from retro_ops.plan import paths
    from retro_ops.plan.plan import plan_to_json

    uri = paths.plan_uri(plan.root, plan.dataset, "run")
    Path(uri).parent.mkdir(parents=True)
    Path(uri).write_text(plan_to_json(plan))
    return uri


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: they run beside each other, and the short ones fill the gaps."""
    longest = [
        f"test_{name}.py" for name in ("dag", "scheduler", "backfill", "steering", "install", "repair", "models")
    ]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))
