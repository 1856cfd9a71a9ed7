"""Publishing: floors, and orders of events in which a published dataset could become wrong without a word."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from books import build, make_corpus, plan_of
from nightly import Nights, damage, planned, shards
from runs import Done, StageFailedError, call, compare, to_the_end, whole_run
from samples import Run

from retro_ops import uris
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.storage import store
from retro_ops.versions import history
from retro_ops.versions.audit import audit


def test_of_two_runs_at_once_one_publishes_and_the_other_is_refused(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    slow = paths.plan_uri(built.root, "d", "slow")
    call("plan", "--root", built.root, "--dataset", "d", "--output", slow, "--refresh")
    built.put("train/g")
    built.refresh()
    rest = Done(slow)
    for stage, shard in stage_graph.tasks(
        rest.plan, tuple(s for s in stage_graph.stages(rest.plan) if s != "describe")
    ):
        call(stage, "--plan", slow, *(["--shard", shard] if shard else []))
    for stage in ("describe", "validate"):
        call(stage, "--plan", slow)
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        call("publish", "--plan", slow)
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


def test_a_published_version_names_its_figures(built: Nights) -> None:
    entry = built.series().entry()
    card = json.loads(store.read(paths.card_in(built.series().folder(), "json")))
    assert entry["figures"]["stored_bytes"] == card["totals"]["stored_bytes"]
    assert entry["figures"]["quality"]["train"]["recall"] == round(card["quality"]["train"]["recall"], 4)


def test_publishing_an_old_run_again_changes_nothing(built: Nights) -> None:
    built.put("train/e")
    old = built.refresh()
    built.put("train/g")
    built.refresh()
    call("publish", "--plan", old.plan_uri)
    assert built.series().current == 3


def test_an_old_run_that_is_finished_late_does_not_undo_newer_ones(built: Nights, capfd: Any) -> None:
    built.put("train/e")
    died = planned(built, "died")
    call("tokenize-and-chunk", "--plan", died, "--shard", "e")
    built.put("train/g")
    built.remove("train/b")
    built.refresh()
    capfd.readouterr()
    with pytest.raises(StageFailedError):
        built.repair("--repair-run", "died")
    assert "version 2 was published meanwhile" in capfd.readouterr().err
    assert shards(built) == ["d", "e", "f", "g", "v"]


def test_planning_a_run_again_leaves_the_version_that_it_published(built: Nights, run: Run) -> None:
    built.put("train/e")
    done = built.refresh()
    before = read_plan(built.series().plan_uri())
    built.put("train/g")
    # As when the task `plan` is cleared.
    call("plan", "--root", built.root, "--dataset", "d", "--refresh",
                 "--output", paths.first_plan_uri(done.plan_uri))  # fmt: skip
    assert not store.exists(done.plan_uri)
    assert read_plan(built.series().plan_uri()) == before
    assert {entry.state for entry in audit(before, thorough=True)} == {"done"}


def test_outputs_found_damaged_meanwhile_are_not_published(nights: Nights, capfd: Any) -> None:
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


def test_publish_refuses_figures_beyond_their_limits(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model)
    plan = build(run, uri)
    current = Path(paths.current_uri(plan.root, plan.dataset))
    current.unlink(missing_ok=True)
    card = Path(paths.card_uri(plan, "json"))
    measured = json.loads(card.read_text())
    assert measured["quality"]["train"]["recall"] > 0.95
    measured["quality"]["train"]["recall"] = 0.7
    measured["quality"]["val"]["leaked"] = 0.2
    card.write_text(json.dumps(measured))
    run("publish", "--plan", uri, "--max-leaked", "0.1", code=65)
    said = capfd.readouterr().err
    assert "recall of train is 0.7000, below 0.8" in said
    assert "share of leaked rows of val is 0.2000, above 0.1" in said
    assert "raise --target-recall (Target recall on the form)" in said
    assert not current.exists()
    run("publish", "--plan", uri, "--min-recall", "0.5")
    assert current.exists()
    current.unlink()
    Path(paths.report_uri(plan, "describe")).unlink()
    run("publish", "--plan", uri, code=65)
    assert "run `retro-ops describe`" in capfd.readouterr().err
