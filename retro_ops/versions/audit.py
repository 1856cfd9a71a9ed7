"""Reports which tasks of a plan are done, missing or damaged, and which outputs a repair must rebuild."""

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
class TaskState:
    """The state of one task: a stage on a shard."""

    stage: str
    shard: str | None
    """None for a stage that runs once for all shards."""
    state: State
    seconds: float | None
    """Seconds that the stage took; None if there is no readable report."""
    report: str
    """URI of the report."""
    why: str = ""
    """The problem, if the task is missing or damaged."""


def stages(plan: Plan) -> list[str]:
    """The stages of a run of ``plan`` that write a report."""
    return [*stage_graph.stages(plan), "validate"]


def audit(plan: Plan, thorough: bool = False) -> list[TaskState]:
    """The state of every task of ``plan``, in order.

    ``thorough``: compare checksums as well as lengths, which reads all files.
    """
    at_once = read_ahead.READERS if thorough else read_ahead.LOOKUPS
    sizes = _sizes(plan)
    return read_ahead.side_by_side(
        lambda task: _audit(plan, *task, sizes, thorough=thorough), stage_graph.tasks(plan, stages(plan)), at_once
    )


def _sizes(plan: Plan) -> dict[str, int]:
    """Length in bytes of every file of the dataset. Listings are cheap: one request covers a thousand files."""
    folder = paths.dataset_folder(plan.root, plan.dataset)
    listed = read_ahead.side_by_side(store.at(folder).objects, [uris.join(folder, name) for name in paths.TOP_FOLDERS])
    return {entry.uri: entry.bytes for objects in listed for entry in objects}


def _audit(plan: Plan, stage: str, shard: str | None, sizes: Mapping[str, int], *, thorough: bool) -> TaskState:
    uri = paths.report_uri(plan, stage, shard)
    try:
        done = report.read(uri)
    except BadInputError as error:
        return TaskState(stage, shard, "damaged", None, uri, str(error).splitlines()[0])
    if done is None:
        return TaskState(stage, shard, "missing", None, uri, "it does not exist")
    if lost := report.lost_output(done, sizes):
        return TaskState(stage, shard, "damaged", done["seconds"], uri, " ".join(lost))
    if thorough and (changed := report.changed_output(done)):
        return TaskState(
            stage, shard, "damaged", done["seconds"], uri, f"{changed} was modified after its stage wrote it"
        )
    return TaskState(stage, shard, "done", done["seconds"], uri)


def unusable(entries: Sequence[TaskState], published: bool) -> list[TaskState]:
    """Tasks whose output must not be used again.

    In an unfinished run a missing output is only not built yet; in a published version it counts as damage.
    """
    states = ("damaged", "missing") if published else ("damaged",)
    return [e for e in entries if e.state in states and not (e.stage == "validate" and e.state == "missing")]


def digests(plan: Plan, entries: Sequence[TaskState], shards: Sequence[str]) -> Iterator[str]:
    """Digests of the outputs of ``entries``, and of all outputs of ``shards``."""
    for entry in entries:
        yield output_digest(plan, entry.stage, entry.shard)
    for stage in stage_graph.SHARD_STAGES:  # Without signatures, which depend only on the corpus.
        for shard in shards:
            if stage_graph.runs_on(stage, plan.shard(shard)):
                yield output_digest(plan, stage, shard)


def last_plan_uri(plan_uri: str) -> str:
    """The latest revision of a plan: after the search for duplicates, the gate and the check for drift."""
    return next((uri for uri in paths.plans_after(plan_uri) if store.exists(uri)), plan_uri)


def all_shards(plan_uri: str) -> tuple[Shard, ...]:
    """All shards of the run of a plan, including those that failed."""
    first = paths.first_plan_uri(plan_uri)
    deduplicated = paths.next_plan_uri(first, "deduplicated")
    return read_plan(deduplicated if store.exists(deduplicated) else first).shards


def check_sources(plan: Plan) -> None:
    """Raise BadInputError if a shard must be tokenised again but its source file is missing or has changed."""
    reports = [paths.report_uri(plan, "tokenize-and-chunk", shard.name) for shard in plan.shards]
    for shard, is_done in zip(plan.shards, read_ahead.side_by_side(store.exists, reports), strict=True):
        if is_done:
            continue
        if changed := json_lines.changed_source(shard.sources):
            raise BadInputError(
                f"shard {shard.name!r} cannot be built again: {changed}",
                "restore the file, or refresh the dataset, which uses the corpus as it is now",
            )
