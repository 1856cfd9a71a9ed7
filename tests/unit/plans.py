"""Small plans."""

from typing import Any

from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard, Source, Split

SHARD = Shard("00_a", "train", (Source("s3://b/00_a.jsonl", 10, "etag:1:10"),))
VALIDATION = Shard("val_a", "val", (Source("s3://b/val_a.jsonl", 5, "etag:2:5"),))
IDENTITY = Identity("t", 30_000, 0, "m", 384)
PLAN = Plan("books", "s3://b/root", Parameters(), IDENTITY, (SHARD, VALIDATION))


def shard(name: str, content: str, split: Split = "train") -> Shard:
    return Shard(name, split, (Source(f"/{name}", 1, content),))


def plan_of(**changes: Any) -> Plan:
    """With the training shards ``a`` and ``b``."""
    identity = Identity("t", 100, 0, "m", 8)
    return Plan("d", "/r", Parameters(), identity, (shard("a", "1"), shard("b", "2")), **changes)
