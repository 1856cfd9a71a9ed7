"""Files that prune removes and keeps: on local files and S3, and under kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nightly import Nights, objects, place, three_versions
from runs import Done, StageFailedError, call, whole_run
from samples import Run

from retro_ops import uris
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.storage import store
from retro_ops.versions import history
from retro_ops.versions.audit import audit


def aged(root: str) -> None:
    """Set the time of every file to a week ago."""
    for path in Path(root).rglob("*"):
        os.utime(path, (time.time() - 7 * 86_400,) * 2)


def sound(of: Nights, number: int) -> bool:
    plan_uri = of.series().plan_uri(number)
    return {entry.state for entry in audit(Done(plan_uri).plan, thorough=True)} == {"done"}


def test_prune_shows_and_then_removes_what_nothing_kept_uses(built: Nights, run: Run, capfd: Any) -> None:
    three_versions(built)
    aged(built.root)
    # A run in progress: planned, one shard embedded.
    built.put("train/g")
    ongoing = paths.plan_uri(built.root, "d", "ongoing")
    call("plan", *place(built), "--output", ongoing, "--refresh")
    for stage in ("tokenize-and-chunk", "embed-chunks"):
        call(stage, "--plan", ongoing, "--shard", "g")
    # And one that will never be finished.
    dead = paths.plan_uri(built.root, "d", "dead")
    call("plan", *place(built), "--output", dead, "--refresh", "--chunk-size", "32")
    call("tokenize-and-chunk", "--plan", dead, "--shard", "f")
    gone = paths.stage_folder(Done(dead).plan, "tokenize-and-chunk", "f")
    for path in [*Path(gone).iterdir(), *Path(dead).parent.iterdir()]:
        os.utime(path, (0, 0))
    before = objects(built.root)
    capfd.readouterr()
    run("prune", *place(built), "--keep", 1, "--json")
    facts = json.loads(capfd.readouterr().out)
    only_before = paths.embeddings_uri(built.runs[0].plan, "b")
    assert facts["versions"] == [1, 2]
    assert objects(built.root) == before
    run("prune", *place(built), "--keep", 1, "--yes")
    assert set(built.series().entries) == {3}
    assert sound(built, 3)
    left = objects(built.root)
    removed = {uri for uri in before if uri not in left}
    assert {uri for uri in removed if not any(uri.startswith(f["folder"] + "/") for f in facts["folders"])} == set()
    assert sum(len(before[uri]) for uri in removed) == facts["bytes"]
    assert any(uri.startswith(gone) for uri in removed)
    assert only_before in removed
    # The run that was on its way ends as if nothing had happened.
    done = whole_run(built.root, "d", "ongoing", "--refresh")
    assert done.calls["embed-chunks"] == 0
    assert built.series().current == 4
    assert sound(built, 4)
    run("prune", *place(built), "--keep", 5)
    assert "0 folders" in capfd.readouterr().out.splitlines()[-1]


def test_prune_keeps_versions_by_number_and_refuses_what_it_does_not_understand(
    built: Nights, run: Run, capfd: Any
) -> None:
    three_versions(built)
    aged(built.root)
    run("prune", *place(built), "--keep", 0, "--keep-version", 1, "--yes")
    assert set(built.series().entries) == {1, 3}
    assert sound(built, 1)
    assert sound(built, 3)
    Path(built.series().plan_uri(1)).write_text("{}")
    before = objects(built.root)
    run("prune", *place(built), "--keep", 5, "--yes", code=65)
    assert objects(built.root) == before
    run("prune", *place(built), "--keep", -1, code=65)


def test_prune_on_s3(nights: Nights, run: Run, s3: str, capfd: Any) -> None:
    nights.root = f"{s3}/pruned"
    nights.first()
    nights.put("train/e")
    nights.refresh()
    run("prune", *place(nights), "--keep", 1)
    assert "0 folders" in capfd.readouterr().out.splitlines()[-1]  # All of it is new.
    only_before = paths.neighbours_uri(nights.runs[0].plan, "b")
    time.sleep(1.1)
    run("prune", *place(nights), "--keep", 1, "--grace", "0m", "--yes")
    assert set(nights.series().entries) == {2}
    assert sound(nights, 2)
    assert not store.exists(only_before)


PRUNE = "import sys; from retro_ops.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_prune_that_is_killed_leaves_all_that_is_kept(built: Nights) -> None:
    three_versions(built)
    aged(built.root)
    only_before = paths.embeddings_uri(built.runs[0].plan, "b")
    for delay_s in (0.25, 0.3, 0.35, 0.4, 0.5):
        command = [sys.executable, "-c", PRUNE, "prune", *place(built), "--keep", "1", "--yes"]
        pruning = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay_s)
        pruning.send_signal(signal.SIGKILL)
        pruning.wait()
        assert sound(built, 3)
        for number in built.series().entries:  # Every version that is still listed is complete.
            reports = [uris.join(folder, paths.REPORT) for folder in history.folders(built.series().folder(number))]
            assert all(report.read(uri) for uri in reports)
    call("prune", *place(built), "--keep", 1, "--yes")
    assert set(built.series().entries) == {3}
    assert sound(built, 3)
    assert not store.exists(only_before)
    with pytest.raises(StageFailedError):
        call("rollback", *place(built), "--to", 1)


def test_a_run_that_waits_for_approval_is_kept_for_a_month(built: Nights, run: Run) -> None:
    three_versions(built)
    waits = Path(paths.approval_uri(built.runs[0].plan_uri))
    waits.write_text("{}")
    aged(built.root)  # It wrote nothing for a week.
    only_before = Path(paths.embeddings_uri(built.runs[0].plan, "b"))
    run("prune", *place(built), "--keep", 1, "--yes")
    assert only_before.exists()
    os.utime(waits, (time.time() - 33 * 86_400,) * 2)
    run("prune", *place(built), "--keep", 1, "--yes")
    assert not only_before.exists()
