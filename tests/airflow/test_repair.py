"""A file damaged in the store, found and repaired by the DAG with real stages; what was run is counted."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_dag import load
from test_scheduler import REAL_STAGES, stage_settings

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, plan_from_json


@pytest.fixture
def dataset(tmp_path: Path, real_stages: Path, airflow_database: None) -> dict[str, Any]:
    """Published by `retro-ops build`; a journal beside it gets a line for every stage that the DAG calls."""
    from pydoc_data.topics import topics

    texts = [text[:1500] for _, text in sorted(topics.items())]
    (tmp_path / "corpus").mkdir()
    for number, name in enumerate("abc"):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number * 3 : number * 3 + 3])
        (tmp_path / f"corpus/{name}.jsonl").write_text("".join(lines))
    place = {"root": str(tmp_path / "root"), "dataset": "d"}
    build(**place, corpus=str(tmp_path / "corpus"), model=stage_settings()["RETRO_MODEL"])
    return place


def build(**flags: str) -> None:
    """Publish a first version by one process: libraries of models are imported once, and not for each shard."""
    flags = {"tokenizer": flags["model"], "index-type": "Flat", "device": "cpu"} | flags
    command = [REAL_STAGES, "build", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def published(place: dict[str, Any]) -> tuple[int, Plan]:
    folder = Path(paths.dataset_folder(place["root"], place["dataset"]))
    current = json.loads((folder / "current.json").read_text())
    uri = str(folder / current["plan"])
    return int(current["version"]), plan_from_json(Path(uri).read_text(), uri)


def test_a_damaged_shard_is_found_and_repaired_with_what_depends_on_it(dataset: dict[str, Any], tmp_path: Path) -> None:
    _, before = published(dataset)
    damaged = Path(paths.embeddings_uri(before, "b"))
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(bytes(data))
    place = ["--root", dataset["root"], "--dataset", "d"]
    status = subprocess.run([REAL_STAGES, "status", *place, "--thorough"], capture_output=True, text=True, check=False)
    assert status.returncode == 65
    assert f"{damaged} was modified after its stage wrote it" in status.stdout

    done = load("retro_repair").test(run_conf=dataset)
    assert str(done.state) == "success"
    version, after = published(dataset)
    assert version == 2
    calls = [line.split()[1:] for line in (tmp_path / "door/journal").read_text().splitlines()]
    of_shards = Counter((stage, shard) for stage, shard in calls if shard != "-")
    assert of_shards == {
        ("tokenize-and-chunk", "b"): 1,  # Which finds its chunks done.
        ("embed-chunks", "b"): 1,
        ("build-faiss-index", "b"): 1,
        **{("retrieve-neighbours", shard): 1 for shard in "abc"},
    }
    for shard in "abc":
        same = paths.embeddings_uri(after, shard) == paths.embeddings_uri(before, shard)
        assert same == (shard != "b")
        chunks = (paths.chunks_files(plan, shard)["chunks"] for plan in (before, after))
        assert len(set(chunks)) == 1
        one, other = (Path(paths.neighbours_uri(plan, shard)).read_bytes() for plan in (before, after))
        assert one == other
    status = subprocess.run([REAL_STAGES, "status", *place, "--thorough"], capture_output=True, text=True, check=True)
    assert "0 missing, 0 damaged" in status.stdout

    (tmp_path / "door/journal").unlink()
    again = load("retro_repair").test(run_conf=dataset)
    assert str(again.state) == "success"
    assert [line.split()[1] for line in (tmp_path / "door/journal").read_text().splitlines()] == ["plan"]
    assert published(dataset)[0] == 2
