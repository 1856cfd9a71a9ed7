"""How the shards of two plans differ, by content."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retro_ops.plan.plan import Shard


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
