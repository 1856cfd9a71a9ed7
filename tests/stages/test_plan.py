"""A run is bound to its plan."""

from typing import Any

import pytest
from nightly import Nights, planned
from runs import StageFailedError, call

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.storage import store
from retro_ops.versions import condemned
from retro_ops.versions.audit import audit


def test_a_file_that_changes_after_the_plan_is_not_taken_for_what_was_planned(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    planned = paths.plan_uri(built.root, "d", "planned")
    call("plan", "--root", built.root, "--dataset", "d", "--output", planned, "--refresh")
    path = built.folder / "train/e.jsonl"
    before = path.read_bytes()
    built.put("train/e")
    with pytest.raises(StageFailedError) as failed:
        call("tokenize-and-chunk", "--plan", planned, "--shard", "e")
    assert failed.value.code == 65
    assert "e.jsonl has changed since the run was planned" in capfd.readouterr().err
    path.unlink()
    with pytest.raises(StageFailedError):
        call("tokenize-and-chunk", "--plan", planned, "--shard", "e")
    assert not store.exists(paths.report_uri(read_plan(planned), "tokenize-and-chunk", "e"))
    path.write_bytes(before)
    call("tokenize-and-chunk", "--plan", planned, "--shard", "e")


def test_other_code_finds_what_was_published_and_builds_it_again(
    built: Nights, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    behind = planned(built, "behind")
    monkeypatch.setitem(digests.CODE_VERSIONS, "retrieve-neighbours", 99)
    assert {entry.state for entry in audit(read_plan(built.series().plan_uri()))} == {"done"}
    assert built.repair().changes["nothing"]
    # Only a new run may use the new code.
    with pytest.raises(StageFailedError):
        call("embed-chunks", "--plan", behind, "--shard", "d")
    assert "was made by another version of this package, whose retrieve-neighbours" in capfd.readouterr().err
    done = built.refresh()
    assert (done.calls["retrieve-neighbours"], done.calls["embed-chunks"]) == (4, 0)
    monkeypatch.setitem(digests.CODE_VERSIONS, "embed-chunks", 99)
    assert built.refresh().calls["embed-chunks"] == 4
    assert condemned.read_condemned(built.root, "d") == ()


def test_chunks_that_the_model_does_not_read_to_their_end_are_logged_or_refused(
    nights: Nights, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ("plan", "--root", nights.root, "--dataset", "d", "--output", f"{nights.root}/p.json", *nights.settings)
    call(*place, "--chunk-size", "256")
    assert "the rest of a chunk" not in capfd.readouterr().err
    call(*place, "--chunk-size", "300")
    assert "chunks have 300 tokens, but model" in capfd.readouterr().err
    with pytest.raises(StageFailedError) as failed:
        call(*place, "--chunk-size", "600")
    assert failed.value.code == 65
    assert "reads 256 of a text: most of each" in capfd.readouterr().err
