"""Filled indexes + a sample of queries -> nprobe and candidates for the target recall, measured by exact search."""

from argparse import ArgumentParser, Namespace
from typing import Any

from retro_ops.compute import device
from retro_ops.errors import ConfigurationError, require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, views
from retro_ops.plan.parameters import Parameters, values_for
from retro_ops.plan.plan import Plan, Split
from retro_ops.progress import say
from retro_ops.storage import store

STAGE = "tune-search"


def add_arguments(parser: ArgumentParser) -> None:
    """Only --plan: by hand, `retrieve-neighbours` tunes its search itself."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="by hand, `retrieve-neighbours` tunes its search itself")
    plan = read_plan(arguments.plan)
    chosen = values_for(STAGE, parameters)
    inputs = [paths.index_uri(plan, split) for split in plan.splits()]
    uri, digest = paths.report_uri(plan, STAGE), digests.tuning_digest(plan)
    report.run_once(STAGE, uri, digest, chosen, inputs, lambda: _work(plan, arguments.plan, views.searched(parameters)))


def _work(plan: Plan, plan_uri: str, parameters: Parameters) -> report.Outcome:
    if parameters.profile == "seed":
        say(f"{STAGE}: the seed profile searches as the original scripts did: nothing to tune")
        return report.Outcome(counts={"queries": 0}, outputs=[], details={"profile": "seed"})
    where = device.choose(parameters.device, "torch")
    tuned: dict[str, dict[str, Any]] = {
        split: _tune(plan, plan_uri, split, parameters, where) for split in plan.splits()
    }
    counts = {"queries": sum(entry["sample"] for entry in tuned.values())}
    return report.Outcome(counts=counts, outputs=[], details={"profile": "default", **tuned}, device=where)


def _tune(plan: Plan, plan_uri: str, split: Split, parameters: Parameters, where: device.Device) -> dict[str, Any]:
    from retro_ops.search import samples
    from retro_ops.search.open_index import planned_index
    from retro_ops.search.tuning import tune

    searched = planned_index(plan, split, where, parameters)
    chunks = searched.chunks
    queries = samples.for_tuning(plan, split, chunks, parameters.recall_sample, parameters.seed)
    if samples.is_tuned(plan) and (truth := samples.found_in_parts(plan, plan_uri, split, "tuning", len(queries))):
        say(f"{STAGE}: {split}: true neighbours of {len(queries):,} queries from search-samples")
        return tune(queries, searched.over_hits(truth.ids()) or searched.index, parameters, truth).as_json()
    if where.chosen != "cuda" and not store.exists(paths.index_uri(plan, split)):
        raise ConfigurationError(
            f"{paths.index_uri(plan, split)} is not there yet, and on a CPU {STAGE} needs it",
            f"with a grid give {STAGE} a GPU, as search-parts: [resources.{STAGE}] in runtime.toml",
        )
    say(f"{STAGE}: {split}: exact search for {len(queries):,} queries in {chunks.total:,} chunks ({where.chosen})")
    return tune(queries, searched.index, parameters).as_json()
