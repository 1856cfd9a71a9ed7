"""Corpus files: what a path, a folder or a pattern names, and what is passed over."""

import logging
from pathlib import Path

import pytest

from retro_ops.corpus import finding
from retro_ops.errors import BadInputError
from retro_ops.progress import logger


def test_corpus_files_are_found_by_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [Path(uri).relative_to(tmp_path).as_posix() for uri in finding.find(f"{tmp_path}/{pattern}")]

    everything = ["00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl"]
    assert found("00_a.jsonl") == ["00_a.jsonl"]
    assert found("") == found("**/*.jsonl*") == everything
    assert found("{00..01}_*.jsonl*") == everything[:2]
    assert found("*_a.jsonl") == ["00_a.jsonl"]
    with pytest.raises(BadInputError, match="no corpus file"):
        found("*.parquet")


def test_dates_in_folders_and_in_names(tmp_path: Path) -> None:
    for name in ("2026-01-01/a", "2026-01-02/a", "2026-01-03/a", "latest/a", "2026-01-02/sub/a"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pattern = f"{tmp_path}/{{date}}/*.jsonl"
    found = finding.find_dated(pattern, "2026-01-02")
    assert [(Path(f.uri).relative_to(tmp_path).as_posix(), f.date) for f in found] == [
        ("2026-01-01/a.jsonl", "2026-01-01"),
        ("2026-01-02/a.jsonl", "2026-01-02"),
    ]
    assert len(finding.find_dated(pattern, None)) == 3
    with pytest.raises(BadInputError, match="has a date up to 2025-12-31"):
        finding.find_dated(pattern, "2025-12-31")
    (tmp_path / "flat").mkdir()
    for name in ("news_2026-01-01_2026-01-05", "news_2026-01-02_2026-01-01"):
        (tmp_path / "flat" / f"{name}.jsonl").write_text("{}")
    (only,) = finding.find_dated(f"{tmp_path}/flat/news_*_{{date}}.jsonl", "2026-01-03")
    assert only.date == "2026-01-01"


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _found(folder: Path, pattern: str = "") -> list[str]:
    return [uri.removeprefix(f"{folder}/") for uri in finding.find(f"{folder}/{pattern}" if pattern else str(folder))]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger.name)
    return caplog


HIDDEN = (".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", ".hidden.jsonl", "sub/.git/x.jsonl")
OTHERS = ("README.md", "_SUCCESS", "b.json.gz", "c.ndjson", "d.JSONL", "e.jsonl.bz2")


@pytest.mark.parametrize("pattern", ["", "**", "*", "**/*"])
def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, pattern: str, said: pytest.LogCaptureFixture) -> None:
    _touch(tmp_path, "a.jsonl", *HIDDEN, *OTHERS)
    assert _found(tmp_path, pattern) == ["a.jsonl"]
    (record,) = said.records
    assert record.levelno == logging.WARNING  # Some look like documents.
    for name in OTHERS[:1] if pattern else HIDDEN[:1]:
        assert name in record.getMessage()
    counts = [f"{len(OTHERS)} of another format: "] + ([] if pattern else [f"{len(HIDDEN)} hidden: "])
    assert all(count in record.getMessage() for count in counts)


def test_strictly_nothing_is_passed_over(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jsonl", ".hidden.jsonl", "b.json", "c.txt")

    def found(pattern: str) -> list[str]:
        return finding.find(f"{tmp_path}{pattern}", noun="benchmark", strict=True)

    with pytest.raises(
        BadInputError, match=r"not be read as benchmark files: 1 hidden: \S+/.hidden.jsonl; 2 of another"
    ):
        found("")
    with pytest.raises(BadInputError, match=r"files: 2 of another format: \S+/b.json, \S+/c.txt"):
        found("/*")
    assert found("/*.jsonl") == found("/a.jsonl") == [f"{tmp_path}/a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(BadInputError, match=r"no benchmark file at .*; \S+/b.json, \S+/c.txt have another format"):
        found("")


def test_hidden_files_count_where_they_are_named(tmp_path: Path) -> None:
    _touch(tmp_path, *HIDDEN)
    assert _found(tmp_path, ".hidden.jsonl") == [".hidden.jsonl"]
    assert _found(tmp_path, ".ipynb_checkpoints") == [HIDDEN[0]]
    assert _found(tmp_path, ".*.jsonl") == ["._a.jsonl", ".hidden.jsonl"]
    with pytest.raises(BadInputError, match="no corpus file"):
        _found(tmp_path)
    # The hidden part of the folder's own path is no matter.
    _touch(tmp_path / ".cache", "corpus/a.jsonl")
    assert _found(tmp_path / ".cache" / "corpus") == ["a.jsonl"]


@pytest.mark.parametrize("name", ["br[1]", "run{2026}", "what?", "a*b", "[", "{", "b,c{x"])
def test_what_exists_by_that_very_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, f"{name}/a.jsonl", "br1/no.jsonl")
    assert _found(tmp_path, name) == _found(tmp_path, f"{name}/a.jsonl") == [f"{name}/a.jsonl"]


@pytest.mark.parametrize("pattern", ["{a,b}.jsonl", "./{a,b}.jsonl", "[ab].jsonl", "./*.jsonl", "*"])
def test_patterns_without_a_folder(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a.jsonl", "b.jsonl")
    monkeypatch.chdir(tmp_path)
    assert finding.find(pattern) == ["./a.jsonl", "./b.jsonl"]


def test_linked_folders_are_part_of_a_corpus(tmp_path: Path) -> None:
    _touch(tmp_path, "corpus/00_wiki.jsonl", "elsewhere/b.jsonl", "corpus/v3/c.jsonl")
    (tmp_path / "corpus" / "books").symlink_to("../elsewhere")
    (tmp_path / "corpus" / "latest").symlink_to("v3")
    everything = ["00_wiki.jsonl", "books/b.jsonl", "v3/c.jsonl"]  # Once, under its own path.
    assert _found(tmp_path / "corpus") == _found(tmp_path / "corpus", "**/*.jsonl") == everything
    assert _found(tmp_path / "corpus", "latest/*.jsonl") == ["latest/c.jsonl"]
    assert _found(tmp_path / "corpus", "lat*/*.jsonl") == ["latest/c.jsonl"]


def test_keys_that_mark_folders_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        "s3://b/corpus/",
        "s3://b/corpus/a.jsonl",
        "s3://b/corpus/sub/",
        "s3://b/corpus/sub/.jsonl/",
        "s3://b/corpus/.git/",
    ]
    monkeypatch.setattr(finding, "_listed", lambda folder: keys if folder.rstrip("/") == "s3://b/corpus" else [])
    for pattern in ("s3://b/corpus", "s3://b/corpus/*", "s3://b/corpus/**", "s3://b/corpus/**/*"):
        assert finding.find(pattern, strict=True) == ["s3://b/corpus/a.jsonl"]


def test_a_pattern_may_be_longer_than_a_path(tmp_path: Path) -> None:
    _touch(tmp_path, "a7.jsonl")
    assert _found(tmp_path, f"{{{','.join(f'a{number}' for number in range(2000))}}}.jsonl") == ["a7.jsonl"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{1..1000000000}",
        "{" + ",".join("ab" * 20_000) + "}",
        "{a,b}" * 40,
        "*" * 100_000,
        "{" * 50_000,
        "[" * 5000,
        "**/a/" * 4,
    ],
    ids=["range", "alternatives", "product", "stars", "braces", "brackets", "folders"],
)
def test_no_pattern_runs_without_end(tmp_path: Path, pattern: str) -> None:
    _touch(tmp_path, "a.jsonl")
    with pytest.raises(BadInputError):
        _found(tmp_path, f"{pattern}.txt")
