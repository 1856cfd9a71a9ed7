"""What changed in the corpus since the published version."""

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
    """Names of shards, by what became of them since the published version; by content, not by name or time alone."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int


def compare(former: Sequence[Shard], shards: Sequence[Shard]) -> Changes:
    def content(of: Sequence[Shard]) -> dict[str, tuple[Any, ...]]:
        return {s.name: (s.split, s.indexed, s.queried, [of.fingerprint for of in s.sources]) for s in of}

    before, now = content(former), content(shards)
    return Changes(
        added=tuple(name for name in now if name not in before),
        changed=tuple(name for name in now if name in before and now[name] != before[name]),
        removed=tuple(name for name in before if name not in now),
        unchanged=sum(now[name] == before.get(name) for name in now),
    )


def since_published(plan: Plan, series: history.Series) -> dict[str, Any]:
    """What differs from the published version. ``nothing``: all of it would be as it is."""
    if not series.current:
        return {"nothing": False, "base": None, **asdict(compare([], plan.shards))}
    found = compare(read_plan(series.plan_uri()).shards, plan.shards)
    nothing = store.same_object(paths.stage_folder(plan, "write-specs"), series.folder())
    said = ", ".join(f"{len(getattr(found, kind)):,} {kind}" for kind in ("added", "changed", "removed"))
    say(
        f"plan: since version {series.current}: {said}, {found.unchanged:,} unchanged"
        + ("; nothing is to be done" if nothing else ""),
        event="changes",
    )
    return {"nothing": nothing, "base": series.current, **asdict(found)}
