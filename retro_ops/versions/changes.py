"""Compares the corpus with the published version."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, Shard
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.versions import history


@dataclass(frozen=True)
class Changes:
    """Shards that differ from the published version, compared by content and not by time."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int


def compare(previous: Sequence[Shard], current: Sequence[Shard]) -> Changes:
    """Which shards were added, changed, removed or kept from ``previous`` to ``current``."""

    def content(shards: Sequence[Shard]) -> dict[str, tuple[Any, ...]]:
        return {s.name: (s.split, s.indexed, s.queried, [file.fingerprint for file in s.sources]) for s in shards}

    before, after = content(previous), content(current)
    return Changes(
        added=tuple(name for name in after if name not in before),
        changed=tuple(name for name in after if name in before and after[name] != before[name]),
        removed=tuple(name for name in before if name not in after),
        unchanged=sum(after[name] == before.get(name) for name in after),
    )


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
