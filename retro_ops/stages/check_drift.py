"""Measures how well the trained index of the base version fits the new embeddings; decides whether to retrain it."""

import json
import logging
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import Any

from retro_ops.errors import require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import open_npy

STAGE = "check-drift"


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    decided, facts = _decide(plan, parameters)
    level = logging.WARNING if facts["retrain"] else logging.INFO
    say(f"{STAGE}: {facts['why']}", level, event="drift", **facts)
    uri = paths.drift_uri(arguments.plan)
    store.write(uri, (json.dumps(facts, indent=1) + "\n").encode())
    write_plan(decided, paths.next_plan_uri(arguments.plan, "decided"))


def _decide(plan: Plan, parameters: Parameters) -> tuple[Plan, dict[str, Any]]:
    if plan.base is None:
        return plan, {
            "retrain": True,
            "retune": True,
            "why": "there is no trained index to reuse, so a new one is trained",
        }
    from retro_ops.index import drift
    from retro_ops.index.faiss_files import load_index

    trained = report.require(paths.report_uri(plan, "train-faiss-index"), "the training of the index")
    fit = trained["details"].get("fit")
    baseline = drift.Fit(**fit) if fit else None
    embeddings = [paths.embeddings_uri(plan, shard.name) for shard in plan.indexed("train")]
    shards = read_ahead.side_by_side(partial(open_npy, ndim=2, kind="f", finite=True), embeddings)
    current = drift.measure(load_index(paths.trained_index_uri(plan), search=False), shards, parameters.seed)
    reason = (
        drift.reason_to_retrain(baseline, current, parameters.max_drift) if baseline else "its fit was never measured"
    )
    figures = {"then": fit, "now": current.as_json()}
    if reason:
        why = f"a new index is trained and all neighbours are searched again: {reason}"
        return replace(plan, base=None), {"retrain": True, "retune": True, "why": why, **figures}
    retune = _tuned_for(plan) * drift.RETUNE_GROWTH < current.vectors
    decided = replace(plan, base=replace(plan.base, tuning=None)) if retune else plan
    why = "the trained index still fits" + ("; nprobe and candidates are tuned again" if retune else "")
    return decided, {"retrain": False, "retune": retune, "why": why, **figures}


def _tuned_for(plan: Plan) -> int:
    """Number of chunks in the index that the base version was tuned on; 0 if unknown."""
    if plan.base is None or plan.base.tuning is None:
        return 0
    tuned = report.read(paths.report_uri(plan, "tune-search"))
    return int(((tuned or {}).get("details", {}).get("train") or {}).get("vectors", 0))
