"""The steps of a whole run, in order: which stage comes next, with which arguments and on which shards."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, sample_parts, source_list, stage_graph
from retro_ops.plan.locations import NEXT_PLAN
from retro_ops.plan.plan import Plan
from retro_ops.plan.published_changes import read_changes
from retro_ops.plan.stage_graph import STAGES
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import open_npy

ALL = tuple(STAGES)
AFTER_PLAN = ALL[ALL.index("plan") + 1 :]
"""The stages after the plan, in order."""

Mode = Literal["build", "refresh", "repair"]


@dataclass(frozen=True)
class Request:
    """A run to make. Arguments are those of the stages, under the names of their flags: ``validation_corpus``.

    ``plan_uri``: the plan of the run. ``plan``: arguments of `plan`, which writes it; None if it exists.
    ``sources``: arguments of `list-sources`, if the corpus comes from a recipe.
    """

    plan_uri: str
    mode: Mode
    plan: Mapping[str, Any] | None = None
    sources: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Step:
    """One call of a stage, on ``shards`` shards or source files (1 where it does not map over any)."""

    stage: str
    arguments: Mapping[str, Any]
    shards: int = 1

    def command(self) -> list[str]:
        """The same as a command line, without the name of the program."""
        return [self.stage, *flags(self.arguments)]


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """``{"as_of": "2026-01-02", "quick": True, "run": None}`` -> ``["--as-of", "2026-01-02", "--quick"]``."""
    found: list[str] = []
    for name, value in arguments.items():
        if value is None or value is False or value == []:
            continue
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found.append(",".join(value) if isinstance(value, list) else str(value))
    return found


def steps(request: Request) -> Iterator[Step]:
    """Each step depends on files that the one before it wrote: perform it before the next is requested.

    All shards of a stage are one step, like a group of shards in a mapped task of the DAGs. A refresh or repair skips
    shards that have a report, and ends after the plan if nothing is to be done.
    """
    plan_uri = request.plan_uri
    if request.plan is not None:
        yield from _planning(request, request.plan)
    if request.mode != "build" and is_nothing_to_do(plan_uri):
        return
    for stage in AFTER_PLAN:
        step = _step(stage, plan_uri, request.mode)
        if step is None:
            continue
        yield step
        if stage in NEXT_PLAN:
            plan_uri = paths.next_plan_uri(plan_uri, NEXT_PLAN[stage])


def is_nothing_to_do(plan_uri: str) -> bool:
    """Whether the published version is the one that the plan would make."""
    uri = paths.changes_uri(plan_uri)
    return bool(read_changes(store.read(uri), uri)["nothing"])


def _planning(request: Request, arguments: Mapping[str, Any]) -> Iterator[Step]:
    if request.sources is not None:
        yield Step("list-sources", request.sources)
        uri = request.sources["output"]
        files = [file.name for file in source_list.from_json(store.read(uri), uri).files]
        yield Step("split-corpus", {"sources": uri, "file": files}, len(files))
        arguments = {**arguments, "sources": uri}
    yield Step("plan", arguments)


def _step(stage: str, plan_uri: str, mode: Mode) -> Step | None:
    """The call of ``stage``; None where it has nothing to do in this run."""
    plan = read_plan(plan_uri)
    if stage in ("sign-documents", "find-duplicates") and (plan.deduplicated or not plan.parameters.compares_documents):
        return None
    if stage == "check-drift" and mode != "refresh":
        return None
    if stage in ("search-parts", "validate-shards"):  # One process gains nothing from a division.
        return None
    arguments: dict[str, Any] = {"plan": plan_uri}
    if stage == "search-samples":
        parts = [part.name for part in sample_parts.parts(_indexed_vectors(plan))]
        return Step(stage, {**arguments, "part": parts}, len(parts)) if parts else None
    if STAGES[stage].maps_over == "shard":
        shards = [shard.name for shard in stage_graph.shards_of(plan, stage)]
        shards = shards if mode == "build" else _unfinished(plan, stage, shards)
        return Step(stage, {**arguments, "shard": shards}, len(shards)) if shards else None
    if STAGES[stage].folder == "index" and mode != "build" and store.exists(paths.report_uri(plan, stage)):
        return None
    if stage == "validate" and mode == "refresh":
        arguments["changed_only"] = True
    return Step(stage, arguments)


def _indexed_vectors(plan: Plan) -> int:
    uris = [paths.embeddings_uri(plan, shard.name) for shard in plan.shards if shard.indexed]
    return sum(read_ahead.side_by_side(lambda uri: len(open_npy(uri)), uris))


def _unfinished(plan: Plan, stage: str, shards: list[str]) -> list[str]:
    done = read_ahead.side_by_side(store.exists, [paths.report_uri(plan, stage, shard) for shard in shards])
    return [shard for shard, is_done in zip(shards, done, strict=True) if not is_done]
