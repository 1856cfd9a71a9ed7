"""How two plans differ: their shards by content, and the outputs of equal shards by digest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retro_ops.plan import stage_graph
from retro_ops.plan.digests import output_digest
from retro_ops.plan.plan import Plan, Shard


@dataclass(frozen=True)
class Changes:
    """Shards that differ from the published version, compared by content and not by time."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int


def rebuilt(previous: Plan, current: Plan) -> dict[str | None, tuple[str, ...]]:
    """For each shard of both plans with other outputs than before, the stages that wrote them; None: the index."""
    names = [stage for stage in stage_graph.stages(current) if stage_graph.STAGES[stage].folder != "versions"]
    before = set(stage_graph.tasks(previous, names))
    found: dict[str | None, tuple[str, ...]] = {}
    for stage, shard in stage_graph.tasks(current, names):
        both = (stage, shard) in before
        if both and output_digest(previous, stage, shard) != output_digest(current, stage, shard):
            found[shard] = (*found.get(shard, ()), stage)
    return found


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
