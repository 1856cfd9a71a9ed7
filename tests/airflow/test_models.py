"""A 768-dimensional model that pools by its first token and reads a prompt, from the form to its refreshes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live_airflow import REPOSITORY
from test_dag import load
from test_repair import build, published
from test_scheduler import REAL_STAGES, stage_settings

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan

MAKE_MODEL = """
import sys
from pathlib import Path

import tiny_models
from transformers import AutoTokenizer

words = AutoTokenizer.from_pretrained(sys.argv[2])
tiny_models.write(Path(sys.argv[1]), "Bert", words, "cls", hidden_size=768, num_attention_heads=12)
"""


@pytest.fixture
def place(tmp_path: Path, real_stages: Path, airflow_database: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A dataset whose chunks were embedded by such a model with the prompt "passage: "."""
    from pydoc_data.topics import topics

    python = REAL_STAGES.parent / "python"
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "support"))
        arguments = [tmp_path / "made", stage_settings()["RETRO_MODEL"]]
        subprocess.run([python, "-c", MAKE_MODEL, *arguments], check=True, capture_output=True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_text(json.dumps({"text": topics["assert"]}) + "\n")
    place = {"root": str(tmp_path / "root"), "dataset": "d"}
    more = {"corpus": str(tmp_path / "corpus"), "model": str(tmp_path / "made/model"), "embed-prompt": "passage: "}
    build(**place, **more)
    return place


def called(door: Path) -> list[str]:
    """Stages that were called since the last call."""
    journal = door / "journal"
    stages = [line.split()[1] for line in journal.read_text().splitlines()]
    journal.unlink()
    return stages


def report(plan: Plan) -> Any:
    return json.loads(Path(paths.report_uri(plan, "embed-chunks", "a")).read_text())


def test_a_prompt_is_kept_by_a_refresh_and_another_one_embeds_again(place: dict[str, str], tmp_path: Path) -> None:
    door = tmp_path / "door"
    _, first = published(place)
    assert first.parameters.embed_prompt == "passage: "
    assert str(load("retro_refresh").test(run_conf=place).state) == "success"
    assert called(door) == ["plan"], "with any other prompt there would be something to do"

    assert str(load("retro_refresh").test(run_conf={**place, "embed_prompt": "about: "}).state) == "success"
    _, second = published(place)
    assert called(door).count("embed-chunks") == 1
    assert second.base is None
    assert report(first)["details"]["prompt"] == "passage: "
    made = report(second)
    assert made["identity"]["dimension"] == second.identity.dimension == 768
    assert made["details"]["prompt"] == made["parameters"]["embed_prompt"] == "about: "
    place_flags = ["--root", place["root"], "--dataset", "d"]
    difference = subprocess.run([REAL_STAGES, "diff", *place_flags], capture_output=True, text=True, check=True)
    assert "embed_prompt" in difference.stdout
