"""A 768-dimensional model that pools by its first token and reads a prompt, from the form to its refreshes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live_airflow import REPOSITORY
from test_dag import load
from test_repair import published
from test_scheduler import REAL_STAGES, stage_settings

from retro_ops.plan import paths

MAKE_MODEL = """
import sys
from pathlib import Path

import tiny_models
from transformers import AutoTokenizer

words = AutoTokenizer.from_pretrained(sys.argv[2])
tiny_models.write(Path(sys.argv[1]), "Bert", words, "cls", hidden_size=768, num_attention_heads=12)
"""


@pytest.fixture
def conf(tmp_path: Path, real_stages: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    python = REAL_STAGES.parent / "python"
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "support"))
        arguments = [tmp_path / "made", stage_settings()["RETRO_MODEL"]]
        subprocess.run([python, "-c", MAKE_MODEL, *arguments], check=True, capture_output=True)
    put(tmp_path, "a")
    return {
        "root": str(tmp_path / "root"),
        "dataset": "d",
        "corpus": str(tmp_path / "corpus"),
        "model": str(tmp_path / "made" / "model"),
        "embed_prompt": "passage: ",
        "index_type": "Flat",
        "device": "cpu",
    }


def put(folder: Path, shard: str) -> None:
    from pydoc_data.topics import topics

    texts = [text[:1500] for _, text in sorted(topics.items())][ord(shard) - 97 :: 40]
    (folder / "corpus").mkdir(exist_ok=True)
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"corpus/{shard}.jsonl").write_text("".join(lines))


def embedded(door: Path) -> list[str]:
    """Shards that were embedded since the last call."""
    journal = door / "journal"
    calls = [line.split()[1:] for line in journal.read_text().splitlines()]
    journal.unlink()
    return sorted(shard for stage, shard in calls if stage == "embed-chunks")


def test_a_prompt_is_kept_by_a_refresh_and_another_one_embeds_again(conf: dict[str, Any], tmp_path: Path) -> None:
    door = tmp_path / "door"
    assert str(load("retro_dataset").test(run_conf=conf).state) == "success"
    _, first = published(conf)
    made = json.loads(Path(paths.report_uri(first, "embed-chunks", "a")).read_text())
    assert made["identity"]["dimension"] == first.identity.dimension == 768
    assert made["details"]["prompt"] == made["parameters"]["embed_prompt"] == "passage: "
    assert embedded(door) == ["a"]

    put(tmp_path, "b")
    place = {"root": conf["root"], "dataset": "d"}
    assert str(load("retro_refresh").test(run_conf=place).state) == "success"
    _, second = published(conf)
    assert second.parameters.embed_prompt == "passage: "
    assert embedded(door) == ["b"], "the first shard is used as it is"
    assert paths.embeddings_uri(second, "a") == paths.embeddings_uri(first, "a")

    assert str(load("retro_refresh").test(run_conf={**place, "embed_prompt": "about: "}).state) == "success"
    _, third = published(conf)
    assert embedded(door) == ["a", "b"]
    assert third.base is None
    place_flags = ["--root", conf["root"], "--dataset", "d"]
    difference = subprocess.run([REAL_STAGES, "diff", *place_flags], capture_output=True, text=True, check=True)
    assert "embed_prompt" in difference.stdout
