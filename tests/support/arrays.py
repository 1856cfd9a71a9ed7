"""The arrays that a trainer reads of two datasets, compared."""

import sys

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage.npy import open_npy


def compare(one: Plan, other: Plan) -> tuple[dict[str, float], int]:
    """Share of equal rows of each kind of array (0 where the shapes differ), and the chunks in all."""
    assert [shard.name for shard in one.shards] == [shard.name for shard in other.shards]
    equal: dict[str, list[float]] = {}
    chunks = 0
    for shard in one.shards:
        files = []
        for plan in (one, other):
            of_plan = paths.chunks_files(plan, shard.name)
            of_plan["embeddings"] = paths.embeddings_uri(plan, shard.name)
            if shard.queried:
                of_plan["neighbours"] = paths.neighbours_uri(plan, shard.name)
                of_plan["distances"] = paths.distances_uri(of_plan["neighbours"])
            files.append(of_plan)
        for what in files[0]:
            a, b = (open_npy(of_plan[what]).rows(0, sys.maxsize) for of_plan in files)
            equal.setdefault(what, []).append(float((a == b).mean()) if a.shape == b.shape else 0.0)
            chunks += len(a) if what == "chunks" else 0
    return {what: min(values) for what, values in equal.items()}, chunks
