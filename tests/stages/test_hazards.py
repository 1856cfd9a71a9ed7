"""Orders of events in which a published dataset could become wrong without a word."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nightly import Nights
from samples import Run
from test_refresh import damage

from benchmarks import whole_run
from benchmarks.nights import compare
from benchmarks.whole_run import Run as Done
from benchmarks.whole_run import StageFailedError
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.index import drift
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.storage import store
from retro_ops.versions import condemned
from retro_ops.versions.audit import audit

LISTS = ("--index-type", "IVF4,Flat", "--max-drift", "9", "--min-recall", "0")


def planned(nights: Nights, name: str, *flags: str) -> str:
    uri = paths.plan_uri(nights.root, "d", name)
    Done().stage("plan", "--root", nights.root, "--dataset", "d", "--output", uri, "--refresh", *flags)
    return uri


def to_the_end(plan_uri: str) -> Done:
    """The stages of a refresh after its plan."""
    done = Done(plan_uri)
    whole_run._stages(done, whole_run.UNTIL_GATE, True)
    done.stage("check-drift", "--plan", done.plan_uri)
    done.plan_uri = paths.decided_plan_uri(done.plan_uri)
    whole_run._stages(done, whole_run.FROM_INDEX, True)
    for stage in whole_run.TO_PUBLISH:
        done.stage(stage, "--plan", done.plan_uri, *(["--changed-only"] if stage == "validate" else []))
    return done


def shards(nights: Nights) -> list[str]:
    """Of the current version."""
    return [shard.name for shard in read_plan(nights.series().plan_uri()).shards]


def test_a_validation_corpus_can_come_later(nights: Nights) -> None:
    nights.remove("val/v")
    nights.refresh("--corpus", f"{nights.folder}/train", *nights.settings[4:])
    nights.put("val/v")
    done = nights.refresh("--validation-corpus", f"{nights.folder}/val")
    assert set(compare(done, nights.scratch())[0].values()) == {1.0}


def test_a_wider_search_reaches_the_rows_that_are_there(nights: Nights) -> None:
    nights.flags = (*LISTS, "--nprobe", "1", "--retrieval-margin", "4")
    nights.first()
    done = nights.refresh("--target-recall", "1")
    assert done.calls["train-faiss-index"] == 0
    nights.flags = (*nights.flags, "--target-recall", "1")
    assert set(compare(done, nights.scratch())[0].values()) == {1.0}


def test_publishing_an_old_run_again_changes_nothing(built: Nights) -> None:
    built.put("train/e")
    old = built.refresh()
    built.put("train/g")
    built.refresh()
    Done().stage("publish", "--plan", old.plan_uri)
    assert built.series().current == 3


def test_an_old_run_that_is_finished_late_does_not_undo_newer_ones(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    died = planned(built, "died")
    Done().stage("tokenize-and-chunk", "--plan", died, "--shard", "e")
    built.put("train/g")
    built.remove("train/b")
    built.refresh()
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        built.repair("--run", "died")
    assert "version 2 was published meanwhile" in capfd.readouterr().err
    assert shards(built) == ["d", "e", "f", "g", "v"]


def test_planning_a_run_again_leaves_the_version_that_it_published(built: Nights, run: Run) -> None:
    built.put("train/e")
    done = built.refresh()
    before = read_plan(built.series().plan_uri())
    built.put("train/g")
    # As when the task `plan` is cleared.
    Done().stage("plan", "--root", built.root, "--dataset", "d", "--refresh",
                 "--output", paths.first_plan_uri(done.plan_uri))  # fmt: skip
    assert not store.exists(done.plan_uri)
    assert read_plan(built.series().plan_uri()) == before
    assert {entry.state for entry in audit(before, thorough=True)} == {"done"}


def test_other_code_finds_what_was_published_and_builds_it_again(
    built: Nights, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    behind = planned(built, "behind")
    monkeypatch.setitem(digests.CODE_VERSIONS, "retrieve-neighbours", 99)
    assert {entry.state for entry in audit(read_plan(built.series().plan_uri()))} == {"done"}
    assert built.repair().changes["nothing"]
    # Only a new run may use the new code.
    with pytest.raises(StageFailedError):
        Done().stage("embed-chunks", "--plan", behind, "--shard", "d")
    assert "was made by another version of this package, whose retrieve-neighbours" in capfd.readouterr().err
    done = built.refresh()
    assert (done.calls["retrieve-neighbours"], done.calls["embed-chunks"]) == (4, 0)
    monkeypatch.setitem(digests.CODE_VERSIONS, "embed-chunks", 99)
    assert built.refresh().calls["embed-chunks"] == 4
    assert condemned.read_condemned(built.root, "d") == ()


def test_status_of_a_run_is_of_what_became_of_it(nights: Nights, run: Run, capfd: Any) -> None:
    nights.flags = (*LISTS[:2], "--min-recall", "0", "--max-drift", "0")
    nights.first()
    for name in "ghij":
        nights.put(f"train/{name}", 4)
    assert nights.refresh().plan.base is None
    capfd.readouterr()
    run("status", "--root", nights.root, "--dataset", "d", "--run", "night 2")
    assert "0 missing, 0 damaged" in capfd.readouterr().out


def test_days_that_are_made_up_for_do_not_replace_a_version_of_all_days(nights: Nights) -> None:
    nights.folder = nights.folder / "dated"
    for day in (1, 2, 3):
        nights.put(f"2026-01-0{day}/news", 2)
    # By hand, without a day.
    done = nights.refresh("--corpus", f"{nights.folder}/{{date}}/*.jsonl", *nights.settings[4:])
    assert done.plan.as_of == "2026-01-03"
    nights.refresh("--as-of", "2026-01-02")
    assert nights.series().current == 1
    assert len(nights.series().entries) == 2


def test_what_was_found_damaged_meanwhile_is_not_published(nights: Nights, capfd: Any) -> None:
    nights.folder = nights.folder / "dated"
    for day in (1, 2, 3):
        nights.put(f"2026-01-0{day}/news", 2)
    flags = ("--corpus", f"{nights.folder}/{{date}}/*.jsonl", *nights.settings[4:])
    first = nights.refresh(*flags, "--as-of", "2026-01-02")
    damage(paths.embeddings_uri(first.plan, "2026-01-01_news"))
    slow = planned(nights, "slow", "--as-of", "2026-01-03")
    nights.repair()
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        to_the_end(slow)
    assert "was found damaged meanwhile" in capfd.readouterr().err
    assert nights.series().current == 2


def test_numbers_of_versions_are_never_given_twice(built: Nights, run: Run) -> None:
    for name in ("e", "g"):
        built.put(f"train/{name}")
        built.refresh()
    place = ["--root", built.root, "--dataset", "d"]
    run("rollback", *place, "--to", 1)
    run("prune", *place, "--keep", 0, "--keep-version", 1, "--yes")
    assert set(built.series().entries) == {1}
    built.put("train/h")
    built.refresh()
    assert set(built.series().entries) == {1, 4}


def test_a_shard_that_was_left_out_does_not_stand_in_the_way_of_a_repair(built: Nights) -> None:
    built.put("train/e")
    built.put("train/c")
    plan_uri = planned(built, "partial")
    plan = read_plan(plan_uri)
    selected = paths.selected_plan_uri(plan_uri)
    without = tuple(shard for shard in plan.shards if shard.name != "e")
    write_plan(replace(plan, shards=without, skipped=("e",)), selected)
    to_the_end(selected)
    built.put("train/e")  # Mended since.
    done = built.repair("--shards", "d")
    assert done.plan.skipped == ("e",)
    assert shards(built) == ["b", "c", "d", "f", "v"]
    built.refresh()
    assert shards(built) == ["b", "c", "d", "e", "f", "v"]


def test_a_damaged_shard_whose_file_is_gone_condemns_nothing(built: Nights) -> None:
    damage(paths.chunks_files(built.runs[0].plan, "d")["chunks"])
    built.remove("train/d")
    with pytest.raises(StageFailedError):
        built.repair()
    assert condemned.read_condemned(built.root, "d") == ()


@pytest.mark.parametrize("what", ["neighbours", "distances", "index", "partial index"])
def test_damage_is_not_taken_over_into_the_next_version(built: Nights, what: str, capfd: Any) -> None:
    plan = built.runs[0].plan
    neighbours = paths.neighbours_uri(plan, "d")
    uri = {
        "neighbours": neighbours,
        "distances": paths.distances_uri(neighbours),
        "index": paths.index_uri(plan, "train"),
        "partial index": paths.partial_index_uri(plan, "d"),
    }[what]
    damage(uri)
    built.put("train/a" if what == "partial index" else "train/x")  # Before the others: all is merged anew.
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        built.refresh()
    assert f"{uri} is not what its stage wrote" in capfd.readouterr().err
    assert built.series().current == 1
    built.repair()
    done = built.refresh()
    assert set(compare(done, built.scratch())[0].values()) == {1.0}


def test_a_partial_index_in_the_place_of_a_damaged_one_is_checked(built: Nights, capfd: Any) -> None:
    damage(paths.partial_index_uri(built.runs[0].plan, "d"))
    built.repair()
    built.put("train/x")
    done = built.refresh()
    damage(paths.partial_index_uri(done.plan, "d"))
    Done().stage("plan", "--root", built.root, "--dataset", "d", "--output", done.plan_uri, "--refresh")
    store.at(built.root).delete(paths.report_uri(done.plan, "validate"))
    with pytest.raises(StageFailedError):
        Done().stage("validate", "--plan", done.plan_uri, "--changed-only")


def test_a_refresh_does_not_inherit_the_machine_of_the_run_before(built: Nights) -> None:
    built.put("train/e")
    done = built.refresh("--batch-size", "7", "--min-recall", "0.1")
    assert (done.plan.parameters.batch_size, done.plan.parameters.min_recall) == (7, 0.1)
    built.put("train/g")
    done = built.refresh()
    assert (done.plan.parameters.batch_size, done.plan.parameters.min_recall) == (Parameters().batch_size, 0.1)


def test_a_day_for_a_corpus_without_days_is_said(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    assert built.refresh("--as-of", "2026-01-02").plan.as_of is None
    assert "has no {date}, so the files of today are taken" in capfd.readouterr().err


def test_a_damaged_manifest_is_told(built: Nights, capfd: Any) -> None:
    manifest = paths.manifest_in(built.series().folder())
    Path(manifest).write_text(json.dumps({})[:1])
    built.put("train/e")
    with pytest.raises(StageFailedError) as failed:
        built.refresh()
    assert failed.value.code == 65
    assert f"{manifest} is damaged" in capfd.readouterr().err
    built.repair()
    assert Counter(entry.state for entry in audit(read_plan(built.series().plan_uri())))["damaged"] == 0


def test_imbalance_does_not_count_that_a_document_lies_in_few_lists() -> None:
    rng = np.random.default_rng(0)
    lists, runs, rows = 4096, drift.SAMPLED_RUNS, drift.RUN_ROWS
    own = rng.integers(lists, size=(runs, 1))
    others = rng.integers(lists, size=(runs, rows))
    numbers = np.where(rng.random((runs, rows)) < 0.5, own, others).reshape(-1)
    of_run = np.repeat(np.arange(runs), rows)
    assert drift.imbalance(numbers, of_run, lists) == pytest.approx(1, rel=0.2)
    assert drift.imbalance(numbers, np.arange(len(numbers)), lists) > 4
