"""Compares the corpus with the published version."""

from dataclasses import asdict
from typing import Any

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.plan.shard_changes import compare
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.versions import history


def since_published(plan: Plan, series: history.Series) -> dict[str, Any]:
    """The changes since the published version. ``nothing`` is true if the run would produce the same version;
    ``of_earlier_day`` if the published version stays the current one."""
    if not series.current:
        return {"nothing": False, "base": None, **asdict(compare([], plan.shards))}
    published = read_plan(series.plan_uri())
    changes = compare(published.shards, plan.shards)
    nothing = not _drops_others(plan, published) and store.same_object(
        paths.stage_folder(plan, "write-specs"), series.folder()
    )
    counts = ", ".join(f"{len(getattr(changes, kind)):,} {kind}" for kind in ("added", "changed", "removed"))
    say(
        f"plan: shards since version {series.current}: {counts}, {changes.unchanged:,} unchanged"
        + ("; nothing to do" if nothing else ""),
        event="changes",
    )
    earlier = {"of_earlier_day": True} if history.is_older(plan, series) else {}
    return {"nothing": nothing, "base": series.current, **asdict(changes), **earlier}


def _drops_others(plan: Plan, published: Plan) -> bool:
    """Whether ``plan`` may drop other duplicates than the published version: its digest shows it only after the search.
    (Benchmarks are in the digest.)"""
    wanted, before = plan.parameters, published.parameters
    same = (wanted.duplicates, wanted.duplicate_threshold) == (before.duplicates, before.duplicate_threshold)
    return wanted.duplicates == "drop" and not same
