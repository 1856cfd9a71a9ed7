"""Another number of neighbours, or other filters, taken from the kept neighbours of a version without a search."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from nightly import Nights, damage, planned
from runs import StageFailedError, call

from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.planning.base_version import with_base
from retro_ops.storage import store

FILTERS = {"max_overlap": 0.3, "max_shared_run": 2}
LISTS = ("--index-type", "IVF4,Flat", "--target-recall", "0.8")


def view(of: Nights, **changes: Any) -> Plan:
    """The current version with other parameters, its neighbours taken from those that it kept."""
    series = of.series()
    published = read_plan(series.plan_uri())
    changed = replace(published, parameters=replace(published.parameters, **changes), base=None)
    return _retrieved(with_base(changed, series))


def searched(plan: Plan, **changes: Any) -> Plan:
    """``plan`` with all neighbours searched in the whole index."""
    assert plan.base
    shards = tuple(replace(shard, neighbours=None) for shard in plan.base.shards)
    base = replace(plan.base, shards=shards, tuning=None, other_view=False)
    return _retrieved(replace(plan, parameters=replace(plan.parameters, **changes), base=base))


def _retrieved(plan: Plan) -> Plan:
    uri = paths.plan_uri(plan.root, plan.dataset, "view")
    write_plan(plan, uri)
    call("tune-search", "--plan", uri)
    call("retrieve-neighbours", "--plan", uri, "--shard", ",".join(shard.name for shard in plan.shards))
    return plan


def stored(plan: Plan) -> dict[tuple[str, str], bytes]:
    """The files with neighbours and distances of every shard."""
    files = {}
    for shard in plan.shards:
        neighbours = paths.neighbours_uri(plan, shard.name)
        files[shard.name, "neighbours"] = store.read(neighbours)
        files[shard.name, "distances"] = store.read(paths.distances_uri(neighbours))
    return files


def rows(plan: Plan) -> Counter[str]:
    """Rows ``taken`` from kept neighbours, ``filled`` by a search of the view, and ``searched`` for what is kept."""
    counts: Counter[str] = Counter()
    for shard in plan.shards:
        done = report.require(paths.report_uri(plan, "retrieve-neighbours", shard.name), "retrieval")
        counts["taken"] += done["details"]["view"]["taken_rows"]
        counts["filled"] += done["details"]["view"]["searched_rows"]
        # A shard without neighbours in the base version is searched as a whole.
        updated = done["details"].get("updated")
        counts["searched"] += updated["searched_rows"] if updated else done["counts"]["rows"]
    return counts


def test_an_exact_view_is_what_a_full_search_without_kept_neighbours_finds(built: Nights) -> None:
    # What the published version found without filters, four neighbours, counts as kept.
    fewer = view(built, keep_neighbours=4, num_neighbours=2)
    assert stored(fewer) == stored(searched(fewer, keep_neighbours=None))
    assert rows(fewer) == {"taken": rows(fewer)["taken"], "filled": 0, "searched": 0}
    filtered = view(built, keep_neighbours=4, num_neighbours=2, **FILTERS)
    assert stored(filtered) == stored(searched(filtered, keep_neighbours=None))
    assert rows(filtered)["taken"] > 0
    assert rows(filtered)["filled"] > 0
    assert rows(filtered)["searched"] == 0
    # The same together with other chunks.
    built.put("train/e")
    built.remove("train/b")
    both = built.refresh("--keep-neighbours", "4", "--num-neighbours", "2", "--max-overlap", "0.3").plan
    assert stored(both) == stored(searched(both, keep_neighbours=None))
    # Only new rows and those that lost a neighbour are searched.
    assert 0 < rows(both)["searched"] < rows(both)["taken"] + rows(both)["filled"]


def test_an_approximate_view_is_what_a_search_that_keeps_as_many_gives(built: Nights) -> None:
    built.refresh(*LISTS, "--keep-neighbours", "6", "--num-neighbours", "2")
    for changes in ({"num_neighbours": 6}, {"num_neighbours": 1}, {"num_neighbours": 3, **FILTERS}):
        other = view(built, **changes)
        assert other.base
        assert other.base.tuning  # So nothing was tuned.
        assert stored(other) == stored(searched(other))
        assert rows(other)["searched"] == 0
        assert (rows(other)["filled"] > 0) == ("max_overlap" in changes)
    # A version that keeps nothing any more.
    plain = view(built, keep_neighbours=None, num_neighbours=6)
    assert stored(plain) == stored(view(built, num_neighbours=6))


def test_a_damaged_neighbour_never_gets_into_another_view(built: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    damage(paths.neighbours_uri(built.runs[0].plan, "b"))
    with pytest.raises(StageFailedError):
        view(built, keep_neighbours=4, num_neighbours=2)
    assert "neighbours.npy" in capfd.readouterr().err


def test_more_neighbours_than_are_kept_are_refused(built: Nights, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StageFailedError):
        planned(built, "x", "--keep-neighbours", "3")
    assert "num_neighbours is 4, but keep_neighbours is 3" in capfd.readouterr().err


def test_kept_neighbours_can_be_unset(nights: Nights) -> None:
    nights.flags = (*nights.flags, "--num-neighbours", "4", "--max-overlap", "0.9")
    plain = nights.scratch()
    nights.first()
    nights.refresh("--keep-neighbours", "4")
    done = nights.refresh("--unset", "keep_neighbours")
    assert done.plan.parameters == plain.plan.parameters
    assert stored(done.plan) == stored(plain.plan)
