"""The output of `status` for a run and for a version."""

import json
from pathlib import Path
from typing import Any

import pytest
from books import build, make_corpus, plan_of
from nightly import Nights
from samples import Run

from retro_ops.plan import paths
from retro_ops.storage import store


def test_the_status_of_a_run_follows_its_current_plan(nights: Nights, run: Run, capfd: Any) -> None:
    nights.flags = ("--index-type", "IVF4,Flat", "--min-recall", "0", "--max-drift", "0")
    nights.first()
    for name in "ghij":
        nights.put(f"train/{name}", 4)
    assert nights.refresh().plan.base is None
    capfd.readouterr()
    run("status", "--root", nights.root, "--dataset", "d", "--run", "night 2")
    assert "0 missing, 0 damaged" in capfd.readouterr().out


def test_status_lists_what_is_done_missing_and_damaged(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = plan_of(run, f"{s3}/status", str(make_corpus(tmp_path / "corpus", texts)), small_model, small_model)

    def status(*arguments: str, code: int = 0) -> tuple[dict[tuple[str, str | None], str], float]:
        capfd.readouterr()
        run("status", *arguments, "--json", code=code)
        facts = json.loads(capfd.readouterr().out)
        return {(e["stage"], e["shard"]): e["state"] for e in facts["entries"]}, facts["expected_seconds_left"]

    of_run = ("--root", f"{s3}/status", "--dataset", "books", "--run", "a run: 1")
    before, left = status(*of_run)
    assert set(before.values()) == {"missing"}
    assert left > 0
    plan = build(run, uri)
    published = ("--root", f"{s3}/status", "--dataset", "books")
    after, left = status(*published)
    run("status", *published)
    assert "shard " not in capfd.readouterr().out, "a table of incomplete shards would be empty"
    run("show", *published, "--shard", "00_a", "--chunk", 0)
    first = f"00_a, chunk 0, document 0 ({tmp_path}/corpus/train/00_a.jsonl, line 1, id 0)"
    assert first in capfd.readouterr().out.splitlines()
    assert (set(after.values()), left) == ({"done"}, 0)
    assert set(after) == set(before)
    at = store.at(s3)
    at.delete(paths.report_uri(plan, "embed-chunks", "01_b"))
    at.delete(paths.neighbours_uri(plan, "val_a"))
    trained = paths.report_uri(plan, "train-faiss-index")
    store.write(trained, store.read(trained).replace(b"0", b"1", 1))
    found, left = status("--plan", uri, code=65)
    wrong = {key: state for key, state in found.items() if state != "done"}
    assert wrong == {
        ("embed-chunks", "01_b"): "missing",
        ("retrieve-neighbours", "val_a"): "damaged",
        ("train-faiss-index", None): "damaged",
    }
    assert left > 0
    neighbours = paths.neighbours_uri(plan, "val_a")
    for how in ("is missing", "has 3 bytes, but its stage wrote"):
        run("status", "--plan", uri, code=65)
        said = capfd.readouterr()
        assert "(1 of 3 shards are complete)" in said.out
        assert f"{neighbours} {how}" in said.out
        assert "1 missing, 2 damaged" in said.out
        assert "2 tasks have a damaged output" in said.err
        store.write(neighbours, b"cut")
    run("status", *published, code=65)
    assert "--repair" in capfd.readouterr().err
    run("status", "--root", f"{s3}/status", "--dataset", "absent", code=65)
    assert "was never published" in capfd.readouterr().err
