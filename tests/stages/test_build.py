"""`retro-ops build` as a command: a first version, nothing to do, a refresh, a broken shard, continuing a plan."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from samples import Run, write_corpus

from retro_ops.build.steps import AFTER_PLAN, Step
from retro_ops.cli import main
from retro_ops.plan import paths
from retro_ops.versions import history


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def build(*arguments: object) -> Ended:
    """In this process, which has imported the libraries already."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["build", *map(str, arguments)])
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    write_corpus(tmp_path / "corpus/train/a.jsonl", [text[:1500] for text in texts[3:6]])
    write_corpus(tmp_path / "corpus/train/b.jsonl", [text[:1500] for text in texts[6:9]])
    write_corpus(tmp_path / "corpus/val/v.jsonl", [text[:1500] for text in texts[9:11]])
    return tmp_path / "corpus"


def settings(corpus: Path, model: str) -> tuple[object, ...]:
    return (
        *("--corpus", corpus / "train", "--validation-corpus", corpus / "val", "--index-type", "Flat"),
        *("--tokenizer", model, "--model", model, "--device", "cpu"),
    )


def test_a_version_is_built_then_found_up_to_date_then_refreshed(
    tmp_path: Path, corpus: Path, texts: list[str], small_model: str
) -> None:
    place = ("--root", tmp_path / "root", "--dataset", "books")
    first = build(*place, *settings(corpus, small_model))
    assert first.returncode == 0, first.stderr
    assert "books: version 1" in first.stdout
    stages = re.findall(r"^  ([a-z-]+) +[\d.,]+ s$", first.stdout, re.MULTILINE)
    without = ("sign-documents", "find-duplicates", "check-drift", "search-samples", "search-parts", "validate-shards")
    assert stages == ["plan", *(stage for stage in AFTER_PLAN if stage not in without), "all"]
    assert re.search(r"recall of train: 1\.0000\n  recall of val: 1\.0000\n", first.stdout)
    card = Path(re.findall(r"card: (.*)", first.stdout)[0])
    assert card.read_text().startswith("<!")

    again = build(*place, "--refresh")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "books: nothing to do, the published version is up to date\n"
    assert history.read(str(tmp_path / "root"), "books").current == 1

    write_corpus(corpus / "train/c.jsonl", [text[:1500] for text in texts[11:13]])
    refreshed = build(*place, "--refresh", "--json", "--run", "tonight")
    assert refreshed.returncode == 0, refreshed.stderr
    facts = json.loads(refreshed.stdout)
    assert facts["version"] == 2
    assert {stage: facts["stages"][stage]["shards"] for stage in ("embed-chunks", "retrieve-neighbours")} == {
        "embed-chunks": 1,
        "retrieve-neighbours": 4,
    }
    assert "check-drift" in facts["stages"]
    assert "train-faiss-index" not in facts["stages"]
    assert facts["plan"] == paths.plan_uri(str(tmp_path / "root"), "books", "tonight").replace(".json", ".decided.json")


def test_a_broken_shard_ends_the_run_with_its_exit_code_and_says_how_to_continue(
    tmp_path: Path, corpus: Path, small_model: str
) -> None:
    broken = corpus / "train/broken.jsonl"
    broken.write_text("no JSON\n" * 3)
    place = ("--root", tmp_path / "root", "--dataset", "books")
    failed = build(*place, "--run", "first", *settings(corpus, small_model))
    plan = paths.plan_uri(str(tmp_path / "root"), "books", "first")
    assert failed.returncode == 65
    assert failed.stdout == ""
    assert "build: tokenize-and-chunk failed" in failed.stderr
    assert f"retro-ops build --plan {plan}" in failed.stderr
    assert "broken" in failed.stderr
    assert not Path(paths.current_uri(str(tmp_path / "root"), "books")).exists()
    assert build("--plan", plan).returncode == 65
    broken.unlink()
    done = build(*place, "--run", "second", "--json", *settings(corpus, small_model))
    assert done.returncode == 0, done.stderr
    again = build("--plan", json.loads(done.stdout)["plan"])
    assert again.returncode == 0, again.stderr
    assert "books: version 1" in again.stdout


def test_flags_that_contradict_each_other_are_refused(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run("build", "--dataset", "books", code=65)
    assert "--root is missing" in capfd.readouterr().err
    (tmp_path / "plan.json").write_text("{}")
    run("build", "--plan", tmp_path / "plan.json", code=65)
    assert "plan.json" in capfd.readouterr().err


def test_a_step_is_a_command_line() -> None:
    step = Step("plan", {"root": "/r", "as_of": "2026-01-02", "shards": ["a", "b"], "quick": True, "run": None})
    assert step.command() == ["plan", "--root", "/r", "--as-of", "2026-01-02", "--shards", "a,b", "--quick"]
