"""What of a plan is done, missing or damaged, task by task; and what a repair does about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retro_ops import uris
from retro_ops.corpus import json_lines
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.digests import output_digest
from retro_ops.plan.plan import Plan, Shard
from retro_ops.storage import read_ahead, store

State = Literal["done", "missing", "damaged"]


@dataclass(frozen=True)
class Entry:
    """One stage of one shard (None: of all). ``why``: what is wrong with it."""

    stage: str
    shard: str | None
    state: State
    seconds: float | None
    report: str
    why: str = ""


def stages(plan: Plan) -> list[str]:
    """Those that a run of ``plan`` has, and that leave a report."""
    return [*stage_graph.stages(plan), "validate"]


def look(plan: Plan, thorough: bool = False) -> list[Entry]:
    """Every task of ``plan``, in order. ``thorough``: compare checksums, not only lengths, so read everything."""
    at_once = read_ahead.READERS if thorough else read_ahead.LOOKUPS
    sizes = _sizes(plan)
    return read_ahead.side_by_side(
        lambda of: _look(plan, *of, sizes, thorough=thorough), stage_graph.tasks(plan, stages(plan)), at_once
    )


def _sizes(plan: Plan) -> dict[str, int]:
    """Bytes of all files of the dataset: a list of a thousand is one request."""
    folder = paths.dataset_folder(plan.root, plan.dataset)
    listed = read_ahead.side_by_side(store.at(folder).objects, [uris.join(folder, room) for room in paths.ROOMS])
    return {entry.uri: entry.bytes for of_room in listed for entry in of_room}


def _look(plan: Plan, stage: str, shard: str | None, sizes: Mapping[str, int], *, thorough: bool) -> Entry:
    uri = paths.report_uri(plan, stage, shard)
    try:
        made = report.read(uri)
    except BadInputError as error:
        return Entry(stage, shard, "damaged", None, uri, str(error).splitlines()[0])
    if made is None:
        return Entry(stage, shard, "missing", None, uri, "it does not exist")
    if lost := report.lost_output(made, sizes):
        return Entry(stage, shard, "damaged", made["seconds"], uri, f"{lost} is gone or was cut off")
    if thorough and (changed := report.changed_output(made)):
        return Entry(stage, shard, "damaged", made["seconds"], uri, f"{changed} is not what its stage wrote")
    return Entry(stage, shard, "done", made["seconds"], uri)


def of_no_use(entries: Sequence[Entry], published: bool) -> list[Entry]:
    """Those whose output nothing may use again. What a run has not done yet is only missing; of what was published,
    nothing may be."""
    states = ("damaged", "missing") if published else ("damaged",)
    return [e for e in entries if e.state in states and not (e.stage == "validate" and e.state == "missing")]


def digests(plan: Plan, entries: Sequence[Entry], shards: Sequence[str]) -> Iterator[str]:
    """Of the outputs of ``entries``, and of everything of ``shards``."""
    for entry in entries:
        yield output_digest(plan, entry.stage, entry.shard)
    for stage in stage_graph.SHARD_STAGES:  # Signatures are of the corpus, and name no shard's output.
        for shard in shards:
            if stage_graph.runs_on(stage, plan.shard(shard)):
                yield output_digest(plan, stage, shard)


def last_plan_uri(plan_uri: str) -> str:
    """What became of the plan of a run: without failed shards, after the check for drift."""
    return next((uri for uri in paths.plans_after(plan_uri) if store.exists(uri)), plan_uri)


def all_shards(plan_uri: str) -> tuple[Shard, ...]:
    """Shards of the run of a plan, those that failed included."""
    first = paths.first_plan_uri(plan_uri)
    deduplicated = paths.next_plan_uri(first, "deduplicated")
    return read_plan(deduplicated if store.exists(deduplicated) else first).shards


def check_sources(plan: Plan) -> None:
    """BadInputError when a shard must be tokenised whose file is gone or has another content than it had."""
    reports = [paths.report_uri(plan, "tokenize-and-chunk", shard.name) for shard in plan.shards]
    for shard, is_done in zip(plan.shards, read_ahead.side_by_side(store.exists, reports), strict=True):
        if is_done:
            continue
        if changed := json_lines.changed_source(shard.sources):
            raise BadInputError(
                f"shard {shard.name!r} cannot be built again: {changed}",
                "put it back; or refresh the dataset, which takes the corpus as it is now",
            )
