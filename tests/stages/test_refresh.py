"""Refresh, repair, days and versions of a small dataset of real text; compared with builds from scratch."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nightly import EXACT, Nights
from samples import Run

from benchmarks.nights import compare
from benchmarks.whole_run import Run as Done
from benchmarks.whole_run import StageFailedError
from benchmarks.whole_run import run as whole_run
from retro_ops import uris
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.index import index_types
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.storage import store
from retro_ops.versions import history
from retro_ops.versions.audit import audit

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
    # Or nothing was shown: rows kept what they had, and rows that lost a neighbour were searched anew.
    assert merged > searched > 0
    Done().stage("validate", "--plan", done.plan_uri)


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


def test_a_refresh_keeps_the_parameters_unless_told(built: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    built.put("train/e")
    assert built.refresh().plan.parameters == built.runs[0].plan.parameters
    # Neighbours are searched anew, the index stays.
    done = built.refresh("--num-neighbours", "2")
    assert done.calls["retrieve-neighbours"] == 5
    assert done.calls["train-faiss-index"] == 0
    built.flags = (*EXACT, "--num-neighbours", "2")
    assert set(compare(done, built.scratch())[0].values()) == {1.0}
    # Other chunks have other embeddings, so nothing of before can be used.
    capfd.readouterr()
    done = built.refresh("--chunk-size", "32")
    assert done.plan.base is None
    assert "chunk_size differ from version 3" in capfd.readouterr().err
    assert done.calls["embed-chunks"] == 5


def test_the_index_is_trained_anew_when_it_no_longer_fits(nights: Nights, capfd: pytest.CaptureFixture[str]) -> None:
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


def damage(uri: str) -> None:
    data = bytearray(store.read(uri))
    data[len(data) // 2] ^= 1
    store.write(uri, bytes(data))


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
def test_what_is_damaged_is_found_and_only_its_dependants_are_run(
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
    run("status", "--root", built.root, "--dataset", "d", "--thorough")
    assert uris.join(*uri.rpartition("/")[::2]) in re.sub(r"\s+", " ", capfd.readouterr().out)
    damaged = store.read(uri)
    done = built.repair()
    assert {stage: done.calls[stage] for stage in expected} == expected
    untouched = set(stage_graph.SHARD_STAGES) - set(expected) - {"build-faiss-index", "retrieve-neighbours"}
    assert all(done.calls[stage] == 0 for stage in untouched), done.calls
    assert {entry.state for entry in audit(done.plan, thorough=True)} == {"done"}
    assert set(compare(done, pristine)[0].values()) == {1.0}
    assert built.series().current == 2
    assert store.read(uri) == damaged  # Whoever reads the old version is left alone.
    # And nothing uses the damaged file again, not even a build from scratch in this root.
    again = whole_run(built.root, "d", "anew", *built.settings)
    assert where(again.plan) != uri or what == "trained index"
    assert built.repair().changes["nothing"]


def test_a_named_shard_is_built_again_whatever_it_holds(built: Nights) -> None:
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
    with pytest.raises(StageFailedError):
        built.repair("--shards", "nobody")


def test_a_shard_whose_file_is_gone_or_changed_is_not_made_of_another(built: Nights, capfd: Any) -> None:
    built.put("train/d")
    with pytest.raises(StageFailedError):
        built.repair("--shards", "d")
    assert "shard 'd' cannot be built again" in capfd.readouterr().err
    built.remove("train/d")
    with pytest.raises(StageFailedError):
        built.repair("--shards", "d")
    assert "d.jsonl was removed" in capfd.readouterr().err


def test_a_file_that_changes_after_the_plan_is_not_taken_for_what_was_planned(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    planned = paths.plan_uri(built.root, "d", "planned")
    Done().stage("plan", "--root", built.root, "--dataset", "d", "--output", planned, "--refresh")
    path = built.folder / "train/e.jsonl"
    before = path.read_bytes()
    built.put("train/e")
    with pytest.raises(StageFailedError) as failed:
        Done().stage("tokenize-and-chunk", "--plan", planned, "--shard", "e")
    assert failed.value.code == 65
    assert "e.jsonl has changed since the run was planned" in capfd.readouterr().err
    path.unlink()
    with pytest.raises(StageFailedError):
        Done().stage("tokenize-and-chunk", "--plan", planned, "--shard", "e")
    assert not store.exists(paths.report_uri(read_plan(planned), "tokenize-and-chunk", "e"))
    path.write_bytes(before)
    Done().stage("tokenize-and-chunk", "--plan", planned, "--shard", "e")


def test_a_run_that_failed_is_finished(built: Nights) -> None:
    broken = built.folder / "train/e.jsonl"
    broken.write_text("no JSON\n" * 3)
    with pytest.raises(StageFailedError):
        built.refresh()
    failed = "night 2"
    sound = built.repair()
    assert sound.changes["nothing"]  # What is published is whole.
    with pytest.raises(StageFailedError):
        built.repair("--run", failed)
    assert built.series().current == 1


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


def test_of_two_runs_at_once_one_publishes_and_the_other_is_told(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    slow = paths.plan_uri(built.root, "d", "slow")
    Done().stage("plan", "--root", built.root, "--dataset", "d", "--output", slow, "--refresh")
    built.put("train/g")
    built.refresh()
    rest = Done(slow)
    for stage, shard in stage_graph.tasks(
        rest.plan, tuple(s for s in stage_graph.stages(rest.plan) if s != "describe")
    ):
        rest.stage(stage, "--plan", slow, *(["--shard", shard] if shard else []))
    for stage in ("describe", "validate"):
        rest.stage(stage, "--plan", slow)
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        rest.stage("publish", "--plan", slow)
    assert "version 2 was published meanwhile" in capfd.readouterr().err
    series = built.series()
    assert (series.current, len(series.entries)) == (2, 2)
    assert {shard.name for shard in read_plan(series.plan_uri()).shards} == {"b", "d", "e", "f", "g", "v"}


KILLS = 8


def test_a_kill_anywhere_leaves_every_reader_a_sound_version(built: Nights, tmp_path: Path) -> None:
    """kill -9 of refresh and repair; see benchmarks/kills.py for hundreds of them."""
    undisturbed = Nights(built.folder, str(tmp_path / "undisturbed"), built.texts, built.model)
    undisturbed.first()
    built.put("train/e")
    whole = undisturbed.refresh()
    randomness = random.Random(0)
    stop, seen = threading.Event(), []
    reader = threading.Thread(target=read_on, args=(built, stop, seen))
    reader.start()
    try:
        for number in range(KILLS):
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                try:
                    whole_run(built.root, "d", "disturbed", "--refresh")
                finally:
                    os._exit(0)
            time.sleep(randomness.uniform(0.2, 1.0 + number / 4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    finally:
        stop.set()
        reader.join()
    done = whole_run(built.root, "d", "disturbed", "--refresh")
    assert set(compare(done, whole)[0].values()) == {1.0}
    assert built.series().current == 2
    assert seen
    assert set(seen) <= {(1, True), (2, True)}


def read_on(nights: Nights, stop: threading.Event, seen: list[tuple[int, bool]]) -> None:
    """A trainer: it takes the current version and finds all that its specs name, as long as its reports say."""
    while not stop.is_set():
        series = nights.series()
        folders = history.folders(series.folder())
        reports = [report.read(uris.join(folder, paths.REPORT)) for folder in folders]
        seen.append((series.current, all(made and report.lost_output(made) is None for made in reports)))
        time.sleep(0.02)
