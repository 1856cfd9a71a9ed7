"""Duplicates from corpus to published version, on files and on S3, from night to night."""

import json
from pathlib import Path
from typing import Any

import pytest
from nightly import EXACT, Nights
from runs import Done, StageFailedError, call, compare, whole_run
from samples import write_corpus

from retro_ops.corpus import line_streams
from retro_ops.execution import checkpoints, report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.stages import tokenize_and_chunk
from retro_ops.storage import store
from retro_ops.versions.audit import audit

DROP = (*EXACT, "--duplicates", "drop")


def changed(text: str, at: int) -> str:
    """A near-duplicate: one word in two hundred is another."""
    words = text.split(" ")
    return " ".join("changed" if number % 200 == at else word for number, word in enumerate(words))


@pytest.fixture
def planted(nights: Nights) -> Nights:
    """a: 0 1 2 3, its own copy of 1, a copy of 8 of validation. b: nearly 0, a bad record, 4, 5. v: 8, nearly 3, 9."""
    nights.texts = [text for text in nights.texts if len(text) > 1000]
    t = nights.texts
    for path in nights.folder.rglob("*.jsonl"):
        path.unlink()
    write_corpus(nights.folder / "train/a.jsonl", [t[0], t[1], t[2], t[3], t[1], t[8]])
    write_corpus(nights.folder / "train/b.jsonl", [changed(t[0], 100), {"no": "text"}, t[4], t[5]])
    write_corpus(nights.folder / "train/c.jsonl", [t[6], t[7]])
    write_corpus(nights.folder / "val/v.jsonl", [t[8], changed(t[3], 50), t[9], t[9]])
    nights.flags = DROP
    return nights


def on_card(done: Done) -> int:
    """Number of duplicates on the card."""
    return int(json.loads(store.read(paths.card_uri(done.plan, "json")))["duplicates"]["duplicates"])


def lines_of(done: Done) -> dict[str, list[int]]:
    """Lines of the corpus that are in the chunks, by shard, as their sidecars say; with as many first chunks."""
    found = {}
    for shard in done.plan.shards:
        files = paths.chunks_files(done.plan, shard.name)
        lines = line_streams.lines([paths.documents_uri(files["chunks"])], 2**20)
        found[shard.name] = [json.loads(line or b"")["line"] for _, _, line in lines]
        made = report.require(paths.report_uri(done.plan, "tokenize-and-chunk", shard.name), "the chunks")
        assert made["counts"]["documents"] == len(found[shard.name])
    return found


def facts_of(done: Done) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(store.read(paths.duplicates_uri(done.plan_uri)))
    return facts


@pytest.mark.parametrize("where", ["files", "s3"])
def test_duplicates_are_in_no_chunk(planted: Nights, s3: str, where: str) -> None:
    if where == "s3":
        planted.root = f"{s3}/duplicates"
    done = planted.first()
    # Training documents that repeat validation are dropped first, then the later of two copies.
    assert lines_of(done) == {"a": [1, 2, 3], "b": [3, 4], "c": [1, 2], "v": [1, 2, 3]}
    made = {
        s.name: report.require(paths.report_uri(done.plan, "tokenize-and-chunk", s.name), "") for s in done.plan.shards
    }
    assert {name: of["counts"].get("duplicates_dropped") for name, of in made.items()} == {
        "a": 3,
        "b": 1,
        "c": None,
        "v": 1,
    }
    assert made["b"]["counts"]["bad_records"] == 1
    facts = facts_of(done)
    assert {name: facts[name] for name in ("documents", "duplicates", "exact", "near")} == {
        "documents": 15,
        "duplicates": 5,
        "exact": 3,
        "near": 2,
    }
    assert (facts["within_shards"], facts["across_shards"], facts["across_splits"]) == (2, 1, 2)
    assert facts["categories"]["b, train"] == {"documents": 3, "duplicates": 1}
    examples = {(e["shard"], e["line"]): (e["repeats"]["shard"], e["repeats"]["line"]) for e in facts["examples"]}
    assert examples == {
        ("a", 4): ("v", 2),
        ("a", 5): ("a", 2),
        ("a", 6): ("v", 1),
        ("b", 1): ("a", 1),
        ("v", 4): ("v", 3),
    }
    card = json.loads(store.read(paths.card_uri(done.plan, "json")))
    assert card["duplicates"]["duplicates"] == 5
    assert [row["duplicates_dropped"] for row in card["contents"]] == [3, 1, 0, 1]
    first_bad = [row.get("first_bad_record", "") for row in card["contents"]]
    assert [first.partition(": ")[2].partition(";")[0] for first in first_bad] == ["", "no key 'text'", "", ""]
    assert "train/b.jsonl, line 2: " in first_bad[1]
    assert planted.root not in store.read(paths.manifest_uri(done.plan)).decode(), "a copy names no other folder"
    assert b"<h2>Duplicates</h2>" in store.read(paths.card_uri(done.plan, "html"))
    call("validate", "--plan", done.plan_uri)
    assert {entry.state for entry in audit(done.plan, thorough=True)} == {"done"}


def test_a_report_changes_nothing(planted: Nights) -> None:
    planted.flags = EXACT
    kept = planted.first()
    assert kept.calls["sign-documents"] == kept.calls["find-duplicates"] == 0
    assert not store.exists(paths.duplicates_uri(kept.plan_uri))
    assert b"deduplicated" not in store.read(kept.plan_uri)
    assert b"without" not in store.read(kept.plan_uri)
    done = planted.refresh("--duplicates", "report")
    # The version is the same, so a report alone requires no build.
    assert digests.version_digest(done.plan) == digests.version_digest(kept.plan)
    assert done.changes["nothing"]
    reported = whole_run(planted.root, "d", "report", *planted.settings, "--duplicates", "report")
    assert facts_of(reported)["duplicates"] == 5
    assert lines_of(reported) == lines_of(kept)
    assert digests.version_digest(reported.plan) == digests.version_digest(kept.plan)


def test_from_night_to_night_as_if_built_from_scratch(planted: Nights) -> None:
    t = planted.texts
    first = planted.first()
    # A night without changes is one even if the version has dropped duplicates.
    done = planted.refresh()
    assert done.changes["nothing"]
    assert set(done.calls) == {"plan"}
    # A copy of what is there already: only the new shard is signed and built.
    write_corpus(planted.folder / "train/d.jsonl", [t[4], t[10]])
    done = planted.refresh()
    assert (done.calls["sign-documents"], done.calls["find-duplicates"]) == (1, 1)
    assert (done.calls["tokenize-and-chunk"], done.calls["embed-chunks"]) == (1, 1)
    assert lines_of(done)["d"] == [2]
    assert set(compare(done, planted.scratch())[0].values()) == {1.0}
    # What others repeated goes: their copies come back, and only they are built.
    write_corpus(planted.folder / "val/v.jsonl", [t[8], t[9]])
    done = planted.refresh()
    assert done.calls["tokenize-and-chunk"] == 2
    assert lines_of(done) == {"a": [1, 2, 3, 4], "b": [3, 4], "c": [1, 2], "d": [2], "v": [1, 2]}
    assert set(compare(done, planted.scratch())[0].values()) == {1.0}
    # A new validation document takes what training had of it.
    write_corpus(planted.folder / "val/w.jsonl", [changed(t[7], 30)])
    done = planted.refresh()
    assert lines_of(done)["c"] == [1]
    assert set(compare(done, planted.scratch())[0].values()) == {1.0}
    unchanged = digests.tokenize_digest(first.plan, first.plan.shard("b"))
    assert digests.tokenize_digest(done.plan, done.plan.shard("b")) == unchanged
    # Keeping them again is as it was without all this.
    done = planted.refresh("--duplicates", "keep")
    planted.flags = EXACT
    assert set(compare(done, planted.scratch())[0].values()) == {1.0}
    assert lines_of(done)["a"] == [1, 2, 3, 4, 5, 6]


def test_repair_keeps_what_was_dropped(planted: Nights) -> None:
    first = planted.first()
    chunks = paths.chunks_files(first.plan, "a")["chunks"]
    data = bytearray(store.read(chunks))
    data[len(data) // 2] ^= 1
    store.write(chunks, bytes(data))
    card = paths.card_uri(first.plan, "json")
    store.write(card, store.read(card)[:100])
    done = planted.repair()
    assert done.calls["find-duplicates"] == 0
    assert on_card(done) == 5, "from the run"
    assert done.calls["tokenize-and-chunk"] == 1
    assert lines_of(done) == lines_of(first)
    call("validate", "--plan", done.plan_uri)


def test_prune_keeps_signatures_and_lists_of_duplicates(planted: Nights) -> None:
    plan = planted.first().plan
    call("prune", "--root", planted.root, "--dataset", "d", "--keep", 1, "--grace", "0m", "--yes")
    for shard in plan.shards:
        assert store.exists(paths.report_uri(plan, "sign-documents", shard.name))
        assert shard.without is None or store.exists(shard.without.uri)
    write_corpus(planted.folder / "train/d.jsonl", [planted.texts[10]])
    assert planted.refresh().calls["sign-documents"] == 1


def test_no_stage_runs_before_duplicates_were_looked_for(planted: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    plan_uri = paths.plan_uri(planted.root, "d", "x")
    call("plan", "--root", planted.root, "--dataset", "d", "--output", plan_uri, *planted.settings)
    for stage, shard, said in (
        ("tokenize-and-chunk", ("--shard", "a"), "they have not been found yet"),
        ("find-duplicates", (), "sign-documents of shard 'a' is not done"),
    ):
        with pytest.raises(StageFailedError):
            call(stage, "--plan", plan_uri, *shard)
        assert said in capfd.readouterr().err


def searched(planted: Nights) -> Done:
    """A run that has looked for duplicates."""
    plan_uri = paths.plan_uri(planted.root, "d", "x")
    run = Done(plan_uri)
    call("plan", "--root", planted.root, "--dataset", "d", "--output", plan_uri, *planted.settings)
    for shard in read_plan(plan_uri).shards:
        call("sign-documents", "--plan", plan_uri, "--shard", shard.name)
    call("find-duplicates", "--plan", plan_uri)
    return run


def test_a_damaged_file_stops_only_its_shard(
    planted: Nights, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (planted.folder / "train/z.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd damaged")
    write_corpus(tmp_path / "benchmark.jsonl", [planted.texts[6]])
    planted.flags = (*DROP, "--benchmarks", f"{tmp_path}/benchmark.jsonl")
    run = searched(planted)
    assert "shard 'z' is not compared with other documents or benchmark texts" in capfd.readouterr().err
    assert facts_of(run)["unsigned_shards"] == ["z"]
    assert facts_of(run)["duplicates"] == 5
    contaminated = json.loads(store.read(paths.contamination_uri(run.plan_uri)))
    assert (contaminated["unsigned_shards"], contaminated["shards"]) == (["z"], {"c": 1})
    (tmp_path / "benchmark.jsonl").unlink()
    call("find-duplicates", "--plan", run.plan_uri)  # What it needs of the benchmarks is in the reports.
    assert json.loads(store.read(paths.contamination_uri(run.plan_uri))) == contaminated
    with pytest.raises(StageFailedError):
        call("tokenize-and-chunk", "--plan", paths.next_plan_uri(run.plan_uri, "deduplicated"), "--shard", "z")


def test_records_left_out_of_a_shard_must_be_as_planned(planted: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    first = planted.first()
    without = first.plan.shard("a").without
    assert without
    store.write(without.uri, store.read(without.uri)[:-8] + bytes(8))
    store.at(planted.root).delete(paths.report_uri(first.plan, "tokenize-and-chunk", "a"))
    with pytest.raises(StageFailedError):
        call("tokenize-and-chunk", "--plan", first.plan_uri, "--shard", "a")
    assert "was removed or has changed since the run was planned" in capfd.readouterr().err


def test_a_shard_that_was_cut_counts_what_it_passed_over(planted: Nights) -> None:
    t = planted.texts
    write_corpus(planted.folder / "train/a.jsonl", [t[0], t[0], t[1], t[2], t[2]])
    planted.flags = (*DROP, "--max-chunks", "12")
    done = planted.first()
    made = report.require(paths.report_uri(done.plan, "tokenize-and-chunk", "a"), "the chunks")
    assert made["details"]["stopped_at_max_chunks"]
    assert lines_of(done)["a"] == [1, 3]
    assert made["counts"]["duplicates_dropped"] == 1


def test_a_killed_shard_resumes_without_its_duplicates(planted: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    t = planted.texts
    write_corpus(planted.folder / "train/a.jsonl", [t[0], t[0], t[0], t[1], t[0], t[2], t[2]])
    run = searched(planted)
    run.plan_uri = paths.next_plan_uri(run.plan_uri, "deduplicated")
    arguments = ("tokenize-and-chunk", "--plan", run.plan_uri, "--shard", "a")
    call(*arguments)
    uri = paths.report_uri(run.plan, "tokenize-and-chunk", "a")
    undisturbed = report.require(uri, "the chunks")
    # A block for each document, and an end after the first and after the second.
    monkeypatch.setattr(tokenize_and_chunk, "BATCH_DOCUMENTS", 1)
    monkeypatch.setattr(checkpoints, "COMMIT_BYTES", 1)
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 0.0)
    commit = checkpoints.Checkpoints.commit_when_due
    for ends_at in (1, 4, None):
        store.at(uri).delete(uri)

        def commit_and_end(self: checkpoints.Checkpoints, state: Any, ends_at: int | None = ends_at) -> None:
            commit(self, state)
            if self.end == ends_at:
                raise RuntimeError("the machine died")

        monkeypatch.setattr(checkpoints.Checkpoints, "commit_when_due", commit_and_end)
        if ends_at is None:
            call(*arguments)
        else:
            with pytest.raises(StageFailedError):
                call(*arguments)
    resumed = report.require(uri, "the chunks")
    assert resumed["details"]["resumed_at"] == 4
    assert (resumed["counts"], resumed["outputs"]) == (undisturbed["counts"], undisturbed["outputs"])
    assert resumed["counts"]["duplicates_dropped"] == 4


def test_duplicates_of_an_unchanged_corpus_are_dropped_by_a_refresh(planted: Nights) -> None:
    planted.flags = EXACT
    planted.first()
    done = planted.refresh("--duplicates", "drop")
    assert lines_of(done) == {"a": [1, 2, 3], "b": [3, 4], "c": [1, 2], "v": [1, 2, 3]}
    # What is not searched again stays on the card, even if the run lost it.
    store.write(paths.duplicates_uri(done.plan_uri), b'{"duplicates": 5')
    done = planted.refresh("--num-neighbours", "2")
    assert done.calls["find-duplicates"] == 0
    assert on_card(done) == 5


def test_a_run_that_stopped_is_repaired_with_its_duplicates(planted: Nights) -> None:
    searched(planted)
    done = planted.repair("--repair-run", "x")
    assert done.calls["find-duplicates"] == 0
    assert lines_of(done)["a"] == [1, 2, 3]
    assert on_card(done) == 5
