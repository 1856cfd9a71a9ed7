"""Filled indexes + a sample of queries -> how wide to search for the wanted recall, measured against exact search."""

from argparse import ArgumentParser, Namespace
from typing import Any

from retro_ops.compute import device
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.progress import say

HELP = "measure how wide to search for the wanted recall"
PARAMETERS = (
    *("num_neighbours", "profile", "nprobe", "retrieval_margin", "target_recall", "recall_sample", "seed"),
    *("max_overlap", "max_shared_run", "max_shared_ngrams"),
    *("device", "shard_index", "memory_budget", "search_memory"),
)

STAGE = "tune-search"


def add_arguments(parser: ArgumentParser) -> None:
    """Only --plan: by hand, `retrieve-neighbours` measures it itself."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        raise BadInputError("--plan is missing", "by hand, `retrieve-neighbours` measures how wide to search itself")
    plan = read_plan(arguments.plan)
    chosen = {name: getattr(parameters, name) for name in PARAMETERS}
    inputs = [paths.index_uri(plan, split) for split in plan.splits()]
    uri, digest = paths.report_uri(plan, STAGE), digests.tuning_digest(plan)
    report.run_once(STAGE, uri, digest, chosen, inputs, lambda: _work(plan, parameters))


def _work(plan: Plan, parameters: Parameters) -> report.Outcome:
    if parameters.profile == "seed":
        say(f"{STAGE}: the seed profile searches as the original did; nothing to choose")
        return report.Outcome(counts={"queries": 0}, outputs=[], details={"profile": "seed"})
    where = device.choose(parameters.device, "torch")
    tuned: dict[str, dict[str, Any]] = {split: _tune(plan, split, parameters, where) for split in plan.splits()}
    counts = {"queries": sum(entry["sample"] for entry in tuned.values())}
    return report.Outcome(counts=counts, outputs=[], details={"profile": "default", **tuned}, device=where)


def _tune(plan: Plan, split: Split, parameters: Parameters, where: device.Device) -> dict[str, Any]:
    from retro_ops.search import chunk_reader, open_index, tuning
    from retro_ops.search.queries import query_shards, sample

    chunks = chunk_reader.IndexedChunks(paths.index_shards(plan, split))
    pad_id = plan.identity.pad_id
    index = open_index.open_index(paths.index_uri(plan, split), chunks, where, parameters, split, pad_id)
    filtered = bool(open_index.limits(parameters, split))
    shards = query_shards(plan, split, chunks, filtered)
    queries = sample(list(shards.values()), parameters.recall_sample, parameters.seed)
    say(f"{STAGE}: {split}: exact search for {len(queries):,} queries in {chunks.total:,} chunks ({where.chosen})")
    return tuning.tune(queries, index, parameters).as_json()
