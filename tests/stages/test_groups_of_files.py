"""Several source files in one call of ``split-corpus``: a bad one keeps no other from being split, as with shards."""

import json
from pathlib import Path

import pytest
from samples import Run

from retro_ops.plan import paths, source_list
from retro_ops.storage import store

RECIPE = """\
categories: [docs]
sources:
  - files: "*.jsonl"
    category: docs
"""
NAMES = ("a", "b", "c")


@pytest.fixture
def sources(tmp_path: Path, run: Run) -> str:
    for name in NAMES:
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    uri = paths.sources_uri(str(tmp_path / "root"), "d", "x")
    run("list-sources", "--recipe", tmp_path / "recipe.yaml", "--root", tmp_path / "root", "--dataset", "d",
        "--output", uri)  # fmt: skip
    return uri


def done(uri: str) -> list[str]:
    listed = source_list.from_json(store.read(uri), uri)
    return [file.name for file in listed.files if store.exists(listed.report_uri(file))]


@pytest.mark.parametrize("bad", NAMES)
def test_a_file_that_has_changed_keeps_no_other_from_being_split(
    tmp_path: Path, run: Run, sources: str, bad: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{bad}.jsonl"
    before = path.read_text()
    path.write_text("changed")
    run("split-corpus", "--sources", sources, "--file", ",".join(NAMES), code=65)
    said = capfd.readouterr().err
    assert f"split-corpus: 1 of 3 files failed: {bad}: " in said
    assert "has changed since the sources were listed" in said
    assert "the other files are done" in said
    assert done(sources) == [name for name in NAMES if name != bad]
    path.write_text(before)
    run("split-corpus", "--sources", sources, "--file", ",".join(NAMES))
    assert done(sources) == list(NAMES)
    assert capfd.readouterr().err.count("already done") == 2


def test_every_file_that_failed_is_named(
    tmp_path: Path, run: Run, sources: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in "ac":
        (tmp_path / f"{name}.jsonl").unlink()
    run("split-corpus", "--sources", sources, "--file", "a,b,c", code=65)
    assert "2 of 3 files failed: a: " in capfd.readouterr().err
    assert done(sources) == ["b"]


def test_a_group_must_be_of_the_list(run: Run, sources: str, capfd: pytest.CaptureFixture[str]) -> None:
    run("split-corpus", "--sources", sources, "--file", "a,x", code=65)
    assert "has no source file 'x'" in capfd.readouterr().err
    assert done(sources) == []
    run("split-corpus", "--sources", sources, "--file", ",", code=65)
    assert "--file A,B" in capfd.readouterr().err
