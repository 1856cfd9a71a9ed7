"""Repairs: what is damaged, missing or named is built again, with only what depends on it."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nightly import Nights, damage, planned, shards
from runs import Done, StageFailedError, call, compare, to_the_end, whole_run
from samples import Run

from retro_ops import uris
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.storage import store
from retro_ops.versions import condemned
from retro_ops.versions.audit import audit

REPAIRS: list[tuple[str, Callable[[Any], str], dict[str, int]]] = [
    ("embeddings", lambda p: paths.embeddings_uri(p, "d"), {"embed-chunks": 1, "build-faiss-index": 1}),
    ("chunks", lambda p: paths.chunks_files(p, "d")["chunks"], {"tokenize-and-chunk": 1, "embed-chunks": 1}),
    ("neighbours", lambda p: paths.neighbours_uri(p, "d"), {"retrieve-neighbours": 1}),
    ("partial index", lambda p: paths.partial_index_uri(p, "d"), {"build-faiss-index": 1}),
    ("index", lambda p: paths.index_uri(p, "train"), {"merge-indexes": 1}),
    ("trained index", lambda p: paths.trained_index_uri(p), {"train-faiss-index": 1, "build-faiss-index": 4}),
    ("index spec", lambda p: paths.index_spec_uri(p, "train"), {"write-specs": 1}),
    ("report", lambda p: paths.report_uri(p, "embed-chunks", "d"), {"embed-chunks": 1}),
]


@pytest.mark.parametrize(("what", "where", "expected"), REPAIRS, ids=[what for what, *_ in REPAIRS])
def test_damage_is_found_and_only_its_dependants_are_run(
    built: Nights,
    pristine: Done,
    run: Run,
    what: str,
    where: Callable[[Any], str],
    expected: dict[str, int],
    capfd: Any,
) -> None:
    first = built.runs[0]
    uri = where(first.plan)
    damage(uri)
    run("status", "--root", built.root, "--dataset", "d", "--thorough", code=65)
    said = re.sub(r"\s+", " ", "".join(capfd.readouterr()))
    assert uris.join(*uri.rpartition("/")[::2]) in said
    assert f"retro-ops build --root {built.root} --dataset d --repair" in said
    damaged = store.read(uri)
    done = built.repair()
    assert {stage: done.calls[stage] for stage in expected} == expected
    untouched = set(stage_graph.SHARD_STAGES) - set(expected) - {"build-faiss-index", "retrieve-neighbours"}
    assert all(done.calls[stage] == 0 for stage in untouched), done.calls
    assert {entry.state for entry in audit(done.plan, thorough=True)} == {"done"}
    assert set(compare(done, pristine)[0].values()) == {1.0}
    assert built.series().current == 2
    assert store.read(uri) == damaged  # Readers of the old version are not disturbed.
    # And nothing uses the damaged file again, not even a build from scratch in this root.
    again = whole_run(built.root, "d", "scratch", *built.settings)
    assert where(again.plan) != uri or what == "trained index"
    assert built.repair().changes["nothing"]


def test_a_named_shard_is_rebuilt_even_if_it_is_intact(built: Nights, run: Run, capfd: Any) -> None:
    first = built.runs[0]
    done = built.repair("--shards", "d")
    assert {stage: done.calls[stage] for stage in stage_graph.SHARD_STAGES} == {
        "tokenize-and-chunk": 1,
        "embed-chunks": 1,
        "build-faiss-index": 1,
        "retrieve-neighbours": 4,
    }
    for name in ("b", "f", "v"):
        assert paths.embeddings_uri(done.plan, name) == paths.embeddings_uri(first.plan, name)
    assert set(compare(done, first)[0].values()) == {1.0}
    capfd.readouterr()
    run("diff", "--root", built.root, "--dataset", "d")
    said = capfd.readouterr().out
    of_shard = [stage for stage in stage_graph.SHARD_STAGES if done.calls[stage]]
    assert f"rebuilt: d ({', '.join(of_shard)})" in said
    assert "rebuilt: b, f, v (retrieve-neighbours)" in said
    with pytest.raises(StageFailedError):
        built.repair("--shards", "absent")


def test_a_shard_whose_file_is_gone_or_changed_is_not_made_of_another(built: Nights, capfd: Any) -> None:
    built.put("train/d")
    with pytest.raises(StageFailedError):
        built.repair("--shards", "d")
    assert "shard 'd' cannot be built again" in capfd.readouterr().err
    built.remove("train/d")
    with pytest.raises(StageFailedError):
        built.repair("--shards", "d")
    assert "d.jsonl was removed" in capfd.readouterr().err


def test_a_run_that_failed_is_finished(built: Nights) -> None:
    broken = built.folder / "train/e.jsonl"
    broken.write_text("no JSON\n" * 3)
    with pytest.raises(StageFailedError):
        built.refresh()
    failed = "night 2"
    sound = built.repair()
    assert sound.changes["nothing"]  # What is published is whole.
    with pytest.raises(StageFailedError):
        built.repair("--repair-run", failed)
    assert built.series().current == 1


def test_a_shard_that_was_left_out_does_not_stand_in_the_way_of_a_repair(built: Nights) -> None:
    built.put("train/e")
    built.put("train/c")
    plan_uri = planned(built, "partial")
    plan = read_plan(plan_uri)
    selected = paths.next_plan_uri(plan_uri, "selected")
    without = tuple(shard for shard in plan.shards if shard.name != "e")
    write_plan(replace(plan, shards=without, skipped=("e",)), selected)
    to_the_end(selected)
    built.put("train/e")  # Fixed since.
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
    built.put(
        "train/a" if what == "partial index" else "train/x"
    )  # Sorts before the others: everything is merged again.
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        built.refresh()
    assert f"{uri} was modified after its stage wrote it" in capfd.readouterr().err
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
    call("plan", "--root", built.root, "--dataset", "d", "--output", done.plan_uri, "--refresh")
    store.at(built.root).delete(paths.report_uri(done.plan, "validate"))
    with pytest.raises(StageFailedError):
        call("validate", "--plan", done.plan_uri, "--changed-only")


def test_a_damaged_manifest_is_reported(built: Nights, capfd: Any) -> None:
    manifest = paths.manifest_in(built.series().folder())
    Path(manifest).write_text(json.dumps({})[:1])
    built.put("train/e")
    with pytest.raises(StageFailedError) as failed:
        built.refresh()
    assert failed.value.code == 65
    assert f"{manifest} is not JSON" in capfd.readouterr().err
    built.repair()
    assert Counter(entry.state for entry in audit(read_plan(built.series().plan_uri())))["damaged"] == 0
