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
    changes = compare(read_plan(series.plan_uri()).shards, plan.shards)
    nothing = store.same_object(paths.stage_folder(plan, "write-specs"), series.folder())
    counts = ", ".join(f"{len(getattr(changes, kind)):,} {kind}" for kind in ("added", "changed", "removed"))
    say(
        f"plan: shards since version {series.current}: {counts}, {changes.unchanged:,} unchanged"
        + ("; nothing to do" if nothing else ""),
        event="changes",
    )
    earlier = {"of_earlier_day": True} if history.is_older(plan, series) else {}
    return {"nothing": nothing, "base": series.current, **asdict(changes), **earlier}
