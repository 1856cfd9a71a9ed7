"""One build of a dataset, a published version or a run: its plan, the states of its tasks, its card."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from retro_airflow.pages.place import Place
from retro_ops.errors import DamagedError
from retro_ops.plan import documents, paths, stage_graph
from retro_ops.plan.card import read_card
from retro_ops.plan.estimate import read_estimate
from retro_ops.plan.plan import Plan, Shard, plan_from_json
from retro_ops.plan.published_changes import read_changes
from retro_ops.storage import read_ahead
from retro_ops.uris import join

QUARANTINE_BYTES = 2**20
MOST_BAD_RECORDS = 50
"""Most bad records of a shard on a page, from the first QUARANTINE_BYTES."""


@dataclass(frozen=True)
class Build:
    """``address``: its part of a page's address, ``versions/3`` or ``runs/<name>``."""

    place: Place
    address: str
    plan: Plan
    run: str
    """Name of its run; empty if the version does not name it."""
    version: int | None = None
    """Number of the published version; None if the run has published none."""

    @property
    def title(self) -> str:
        return f"version {self.version}" if self.address.startswith("versions/") else f"run {self.run}"

    @property
    def plan_uri(self) -> str:
        return paths.plan_uri(self.place.root, self.place.dataset, self.run)


def of_version(place: Place, number: int) -> Build:
    """The build of a published version. Raises BadInputError if there is none."""
    entry = place.series().entry(number)
    run = str(entry.get("run", "")).rpartition("/")[0].rpartition("/")[2]
    return Build(place, f"versions/{number}", _plan(place, join(place.folder, str(entry["plan"]))), run, number)


def of_run(place: Place, name: str) -> Build:
    """The build of a run, by the last plan that it has written."""
    first = paths.plan_uri(place.root, place.dataset, name)
    there = {entry.uri: entry.modified for entry in place.objects(first.rpartition("/")[0])}
    uri = next((uri for uri in paths.plans_after(first) if uri in there), first)
    plan = _plan(place, uri, there.get(uri))
    folder = paths.stage_folder(plan, "write-specs")
    series = place.series()
    # A moved dataset has other absolute paths, but the same ones within its folder.
    number = next((n for n, e in series.entries.items() if join(place.folder, str(e["path"])) == folder), None)
    return Build(place, f"runs/{name}", plan, name, number)


@functools.lru_cache(16)
def _plan(place: Place, uri: str, modified: float | None = None) -> Plan:
    """The plan at ``uri``, with the locations of ``place``: no plan leads to files elsewhere.

    ``modified``: time of the plan of a run, which may be written again; the copy in a version never changes.
    """
    return dataclasses.replace(plan_from_json(place.read(uri), uri), root=place.root, dataset=place.dataset)


def card(build: Build) -> Mapping[str, Any] | None:
    """The card as JSON; None if it is not written yet."""
    uri = paths.card_uri(build.plan, "json")
    if not build.place.exists(uri):
        return None
    return read_card(build.place.read(uri), uri)


def card_page(build: Build) -> bytes:
    return build.place.read(paths.card_uri(build.plan, "html"))


def changes(build: Build) -> Mapping[str, Any] | None:
    """Changes since the version that was published before, as the plan found them."""
    uri = paths.changes_uri(build.plan_uri)
    return read_changes(build.place.read(uri), uri) if build.run and build.place.exists(uri) else None


def estimate(build: Build) -> Mapping[str, Any] | None:
    uri = paths.estimate_uri(build.plan_uri)
    return read_estimate(build.place.read(uri), uri) if build.run and build.place.exists(uri) else None


class _ManifestShard(TypedDict):
    name: str
    counts: dict[str, int]


class _Manifest(TypedDict):
    shards: list[_ManifestShard]


@functools.lru_cache(16)
def shard_counts(place: Place, version: str) -> Mapping[str, Mapping[str, int]]:
    """Counts of each shard from the manifest in the folder ``version``, which never changes."""
    uri = paths.manifest_in(version)
    shards = documents.read(place.read(uri), uri, _Manifest, "repair the dataset")["shards"]
    return {shard["name"]: shard["counts"] for shard in shards}


def counts(build: Build) -> Mapping[str, Mapping[str, int]]:
    """Counts of each shard; empty before `write-specs`."""
    if not build.place.exists(paths.manifest_uri(build.plan)):
        return {}
    return shard_counts(build.place, paths.stage_folder(build.plan, "write-specs"))


@dataclass(frozen=True)
class ShardStates:
    """State of each stage of a shard: ``done``, ``started``, ``missing``, or None where the stage does not run."""

    shard: Shard
    states: Sequence[str | None]
    bad_records: bool
    """Whether there is a quarantine file."""


def shard_stages(plan: Plan) -> list[str]:
    """Stages of a run that map over shards."""
    return [stage for stage in stage_graph.stages(plan) if stage_graph.STAGES[stage].maps_over == "shard"]


def states(build: Build, shards: Sequence[Shard]) -> list[ShardStates]:
    """States of ``shards``, from one listing of the folder of each."""
    stages = shard_stages(build.plan)

    def of_shard(shard: Shard) -> ShardStates:
        folder = join(build.place.folder, "shards", shard.name)
        there = {entry.uri for entry in build.place.objects(folder)}
        found: list[str | None] = []
        for stage in stages:
            if not stage_graph.runs_on(stage, shard):
                found.append(None)
                continue
            report = paths.report_uri(build.plan, stage, shard.name)
            started = any(uri.startswith(report.rpartition("/")[0]) for uri in there)
            found.append("done" if report in there else "started" if started else "missing")
        quarantine = paths.quarantine_uri(paths.chunks_files(build.plan, shard.name)["chunks"])
        return ShardStates(shard, found, quarantine in there)

    return read_ahead.side_by_side(of_shard, shards)


class BadRecord(TypedDict):
    """A line of a quarantine file."""

    source: str
    line: int
    reason: str
    content: str


def bad_records(build: Build, shard: Shard) -> list[BadRecord]:
    """The first bad records of a shard, from the start of its quarantine file; none if it has no such file."""
    uri = paths.quarantine_uri(paths.chunks_files(build.plan, shard.name)["chunks"])
    if not build.place.exists(uri):
        return []
    data, size = build.place.head(uri, QUARANTINE_BYTES)
    lines = data.splitlines() if len(data) == size else data.splitlines()[:-1]
    if data and not lines:
        raise DamagedError(f"the first line of {uri} is longer than {len(data):,} bytes", "repair the dataset")
    return [documents.read(line, uri, BadRecord) for line in lines[:MOST_BAD_RECORDS]]


def common_states(build: Build) -> list[tuple[str, str]]:
    """State of each stage that runs once."""
    stages = [*(s for s in stage_graph.stages(build.plan) if s not in shard_stages(build.plan)), "validate"]
    done = read_ahead.side_by_side(
        lambda stage: build.place.exists(paths.report_uri(build.plan, stage)),
        stages,
    )
    return [(stage, "done" if is_done else "missing") for stage, is_done in zip(stages, done, strict=True)]
