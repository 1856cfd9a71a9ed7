"""Records that cannot be used: the first is named in log, report and error, and what is too long is a choice."""

import json
from pathlib import Path

import pytest
from samples import Run, tokenize_flags, write_corpus

from retro_ops.execution import report

LONG = "word " * 1000


def test_the_first_bad_record_is_in_the_log_the_report_and_the_error(
    tmp_path: Path, run: Run, t5_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["a", {"body": "b"}, {"text": 7}, "c", "d"])
    flags = tokenize_flags(tmp_path, t5_dir)
    run("tokenize-and-chunk", corpus, *flags)
    first = f"{corpus}, line 2: no key 'text'; its keys are 'body'"
    warnings = [entry for line in capfd.readouterr().err.splitlines() if (entry := json.loads(line))["level"] != "info"]
    assert [entry["message"].partition("; ")[2] for entry in warnings] == [f"first: {first}"]
    assert report.require(f"{tmp_path}/chunks.report.json", "")["details"]["first_bad_record"] == first
    run("tokenize-and-chunk", corpus, *flags, "--max-bad-share", 0.1, code=65)
    assert f"2 of 5 records (40.0%) are bad, more than the limit of 10.0%; first: {first}" in (
        said := capfd.readouterr().err
    )
    assert "name the key of the text with --text-field (Text field on the form)" in said
    assert "or raise --max-bad-share (Bad-record limit on the form)" in said


def test_the_longest_line_is_a_choice_that_the_budget_must_allow(
    tmp_path: Path, run: Run, t5_dir: str, small_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", ["a", LONG])
    flags = tokenize_flags(tmp_path, t5_dir)
    counts = []
    for more in (("--longest-line", "4KiB"), ()):
        run("tokenize-and-chunk", corpus, *flags, *more)
        done = report.require(f"{tmp_path}/chunks.report.json", "")
        counts.append((done["counts"]["documents"], done["counts"]["bad_records"]))
    assert counts == [(1, 1), (2, 0)]
    place = ("--root", tmp_path / "root", "--dataset", "d", "--corpus", corpus, "--output", tmp_path / "plan.json")
    capfd.readouterr()
    run("plan", *place, "--tokenizer", small_model, "--model", small_model, "--longest-line", "64MiB", code=65)
    assert "longest_line is 64MiB, but memory_budget 2GiB allows 8,388,608 bytes" in (said := capfd.readouterr().err)
    assert "raise --memory-budget (Memory budget on the form) to 16384MiB" in said
