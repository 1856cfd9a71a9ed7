"""The series of versions: list, diff, rollback."""

import json
from typing import Any

import pytest
from nightly import Nights, objects, place, three_versions
from samples import Run

from retro_ops.plan import paths
from retro_ops.storage import store


def test_list_diff_and_rollback(built: Nights, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    three_versions(built)
    capfd.readouterr()
    run("list", *place(built))
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "*"]
    run("diff", *place(built))
    shown = capfd.readouterr().out
    assert "version 2 -> 3" in shown
    assert "shards changed: 1 (d)" in shown
    assert "shards removed: 1 (b)" in shown
    run("diff", *place(built), "--from", 1, "--to", 2, "--json")
    facts = json.loads(capfd.readouterr().out)
    assert facts["shards"] == {"added": ["e"], "changed": [], "removed": [], "unchanged": 4}
    assert facts["counts"]["shards"] == [4, 5]
    assert facts["parameters"] == {}
    assert facts["rebuilt"]["shards"]["b"] == ["retrieve-neighbours"], "its neighbours may be in the new shard"
    before = objects(built.root)
    run("rollback", *place(built), "--to", 1)
    assert built.series().current == 1
    assert set(built.series().entries) == {1, 2, 3}
    changed = {uri for uri, data in objects(built.root).items() if before.get(uri) != data}
    assert changed == {paths.current_uri(built.root, "d")}
    run("validate", "--spec", paths.dataset_spec_in(built.series().folder(), "train"))
    # The next night starts from there, finds the same news, and the version that has them is current again.
    capfd.readouterr()
    built.refresh()
    assert built.series().current in (3, 4)
    for arguments in (["rollback", "--to", 9], ["diff", "--from", 9], ["list", "--dataset", "nothing"]):
        run(arguments[0], *place(built), *arguments[1:], code=65)


def test_an_incomplete_version_is_refused_by_rollback(built: Nights, run: Run, capfd: Any) -> None:
    three_versions(built)
    store.at(built.root).delete(paths.neighbours_uri(built.runs[0].plan, "b"))
    run("rollback", *place(built), "--to", 1, code=65)
    assert "version 1 is incomplete" in capfd.readouterr().err
    assert built.series().current == 3
