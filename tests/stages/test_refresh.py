"""Refreshes of a small dataset of real text, night by night; compared with builds from scratch."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from nightly import EXACT, Nights, planned
from runs import StageFailedError, call, compare, whole_run

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.index import index_types
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.storage import store
from retro_ops.uris import parent, resolve
from retro_ops.versions import history

ALL_LISTS = ("--index-type", "IVF4,Flat", "--nprobe", "4", "--retrieval-margin", "4000", "--max-drift", "9")
"""An approximate index that misses nothing."""


CHANGES: list[Callable[[Nights], None]] = [
    lambda n: n.put("train/e"),
    lambda n: (n.put("train/a"), n.put("val/w", 2)),  # type: ignore[func-returns-value]
    lambda n: n.put("train/d", 2),
    lambda n: n.remove("train/b"),
    lambda n: (n.remove("val/v"), n.remove("train/a"), n.put("train/c")),  # type: ignore[func-returns-value]
]


@pytest.mark.parametrize(
    ("flags", "nights_of"),
    [
        (EXACT, (0, 1, 2, 3, 4)),
        ((*EXACT, "--max-overlap", "0.6", "--max-shared-run", "20"), (1, 3)),
        (ALL_LISTS, (0, 3)),
    ],
    ids=["flat", "filtered", "lists on S3"],
)
def test_after_every_night_all_is_as_if_built_from_scratch(
    nights: Nights, s3: str, flags: tuple[str, ...], nights_of: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.flags = flags
    if flags is ALL_LISTS:  # New chunks are searched by an index of their own, however few they are.
        monkeypatch.setattr(index_types, "FLAT_VECTORS", 0)
        nights.root = f"{s3}/nights"
    nights.first()
    merged = searched = 0
    for number in nights_of:
        CHANGES[number](nights)
        done = nights.refresh()
        equal, chunks = compare(done, nights.scratch())
        assert chunks > 40
        assert equal == dict.fromkeys(equal, 1.0)
        assert done.plan.base is not None
        for shard in done.plan.shards:
            made = report.require(paths.report_uri(done.plan, "retrieve-neighbours", shard.name), "the search")
            merged += made["details"].get("updated", {}).get("merged_rows", 0)
            searched += made["details"].get("updated", {}).get("searched_rows", 0)
    # Otherwise the test proves nothing: some rows were merged, and rows that lost a neighbour were searched again.
    assert merged > searched > 0
    call("validate", "--plan", done.plan_uri)


def test_most_of_a_version_is_removed_only_where_that_is_meant(
    built: Nights, capfd: pytest.CaptureFixture[str]
) -> None:
    """An empty mount, or a folder that lost its files, would publish an almost empty dataset."""
    for name in ("train/b", "train/d", "train/f"):
        built.remove(name)
    built.put("train/e")
    with pytest.raises(StageFailedError):
        planned(built, "x")
    error = capfd.readouterr().err
    assert "3 of 4 shards of version 1 would be removed (75%, more than max_removed_share of 50%): b, d, f" in error
    assert not store.exists(paths.plan_uri(built.root, "d", "x"))
    planned(built, "y", "--max-removed-share", "0.75")
    assert read_plan(paths.plan_uri(built.root, "d", "y")).parameters.max_removed_share == 0.75
    built.refresh("--max-removed-share", "0.75")
    planned(built, "z")
    assert read_plan(paths.plan_uri(built.root, "d", "z")).parameters.max_removed_share == 0.5  # It held for one run.


def test_only_what_changed_is_built(built: Nights) -> None:
    first = built.runs[0]
    assert first.calls["embed-chunks"] == 4
    built.put("train/e")
    done = built.refresh()
    assert {stage: done.calls[stage] for stage in stage_graph.SHARD_STAGES} == {
        "tokenize-and-chunk": 1,
        "embed-chunks": 1,
        "build-faiss-index": 1,
        "retrieve-neighbours": 5,
    }
    assert done.calls["train-faiss-index"] == 0
    # Validation queries search training chunks too; but training rows do not see validation chunks.
    built.put("val/w")
    done = built.refresh()
    assert done.calls["retrieve-neighbours"] == 2
    before, after = (paths.neighbours_uri(d.plan, "e") for d in (built.runs[-2], done))
    assert before == after


def test_a_night_without_news_publishes_nothing(built: Nights) -> None:
    before = {uri: store.read(uri) for uri in store.at(built.root).list(built.root)}
    for path in built.folder.rglob("*.jsonl"):
        os.utime(path, (0, 0))  # Another time is no other content.
    done = built.refresh()
    assert done.changes["nothing"]
    assert set(done.calls) == {"plan"}
    after = {uri: store.read(uri) for uri in store.at(built.root).list(built.root) if uri in before}
    assert after == before
    assert built.series().current == 1


def test_a_refresh_keeps_parameters_that_are_not_set(built: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    built.put("train/e")
    assert built.refresh().plan.parameters == built.runs[0].plan.parameters
    # Neighbours are searched again, the index is kept.
    done = built.refresh("--num-neighbours", "2")
    assert done.calls["retrieve-neighbours"] == 5
    assert done.calls["train-faiss-index"] == 0
    built.flags = (*EXACT, "--num-neighbours", "2")
    assert set(compare(done, built.scratch())[0].values()) == {1.0}
    # Other chunks have other embeddings, so nothing of before can be used.
    capfd.readouterr()
    done = built.refresh("--chunk-size", "32")
    assert done.plan.base is None
    assert "version 3 has another chunk_size, so everything that depends on it is rebuilt" in capfd.readouterr().err
    assert done.calls["embed-chunks"] == 5


def test_a_refresh_with_another_seed_trains_the_index_with_it(built: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    done = built.refresh("--seed", "1")
    assert "version 1 has another seed, so everything that depends on it is rebuilt" in capfd.readouterr().err
    version = built.series().folder()
    manifest = history.manifest(version)
    trained_index = resolve(manifest["trained_index"], paths.manifest_in(version))
    trained = report.require(f"{parent(trained_index)}/report.json", "training")
    assert manifest["parameters"]["seed"] == trained["parameters"]["seed"] == 1
    assert done.calls["train-faiss-index"] == 1
    built.flags = (*EXACT, "--seed", "1")
    assert set(compare(done, built.scratch())[0].values()) == {1.0}


def test_the_index_is_retrained_when_it_no_longer_fits(nights: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    nights.flags = ("--index-type", "IVF8,PQ48", "--index-too-small", "downgrade", "--min-recall", "0")
    first = nights.first()
    nights.put("train/e")
    done = nights.refresh()
    assert digests.train_digest(done.plan) == digests.train_digest(first.plan)
    for name in ("g", "h", "i", "j"):
        nights.put(f"train/{name}", 4)
    capfd.readouterr()
    done = nights.refresh()
    assert "a new index is trained and all neighbours are searched again: it was trained for" in capfd.readouterr().err
    facts = json.loads(store.read(paths.drift_uri(done.plan_uri)))
    assert facts["retrain"]
    assert facts["now"]["vectors"] > 2 * facts["then"]["vectors"]
    assert done.calls["train-faiss-index"] == 1
    assert done.plan.base is None
    assert set(compare(done, nights.scratch())[0].values()) == {1.0}


def test_files_of_a_day(nights: Nights) -> None:
    """Days in any order: the newest stays current, and each version holds what a run on its day would have."""
    nights.folder = nights.folder / "dated"
    for day in (1, 2, 3, 4):
        nights.put(f"2026-01-0{day}/news", 2)
    flags = ("--corpus", f"{nights.folder}/{{date}}/*.jsonl", *nights.settings[4:])
    made = {}
    for day, more in ((1, flags), (2, ()), (4, ()), (3, ())):
        made[day] = nights.refresh(*more, "--as-of", f"2026-01-0{day}")
    names = [f"2026-01-0{day}_news" for day in (1, 2, 3, 4)]
    for day, done in made.items():
        assert [shard.name for shard in done.plan.shards] == names[:day]
        scratch = whole_run(f"{nights.root}-{day}", "d", "x", *flags, "--as-of", f"2026-01-0{day}")
        assert set(compare(done, scratch)[0].values()) == {1.0}
    series = nights.series()
    assert [entry["as_of"][-1] for entry in series.entries.values()] == ["1", "2", "4", "3"]
    assert series.current == 3
    with pytest.raises(StageFailedError):
        nights.refresh("--as-of", "yesterday")


LISTS = ("--index-type", "IVF4,Flat", "--max-drift", "9", "--min-recall", "0")


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


def test_backfilled_days_do_not_replace_a_version_of_all_days(nights: Nights) -> None:
    nights.folder = nights.folder / "dated"
    for day in (1, 2, 3):
        nights.put(f"2026-01-0{day}/news", 2)
    # By hand, without a day.
    done = nights.refresh("--corpus", f"{nights.folder}/{{date}}/*.jsonl", *nights.settings[4:])
    assert done.plan.as_of == "2026-01-03"
    nights.refresh("--as-of", "2026-01-02")
    assert nights.series().current == 1
    assert len(nights.series().entries) == 2


def test_a_refresh_does_not_inherit_the_machine_of_the_run_before(built: Nights) -> None:
    built.put("train/e")
    done = built.refresh("--batch-size", "7", "--min-recall", "0.1")
    assert (done.plan.parameters.batch_size, done.plan.parameters.min_recall) == (7, 0.1)
    built.put("train/g")
    done = built.refresh()
    assert (done.plan.parameters.batch_size, done.plan.parameters.min_recall) == (Parameters().batch_size, 0.1)


def test_a_day_for_a_corpus_without_days_is_logged(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    assert built.refresh("--as-of", "2026-01-02").plan.as_of is None
    assert "has no {date}, so the current files are used" in capfd.readouterr().err
