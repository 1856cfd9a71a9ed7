"""What `validate` need not read: folders that a base version shares, and shards that `validate-shards` checked."""

from collections.abc import Iterator
from dataclasses import replace

from retro_ops.execution import report
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.plan import Plan, Shard
from retro_ops.storage import read_ahead


def checked_digest(plan: Plan, changed_only: bool, thorough: bool) -> str:
    """Digest of a check of ``plan``: one that reads less must not count as one that reads more."""
    chosen = {"changed only": changed_only, "thorough": thorough}
    return digests.digest(digests.version_digest(plan), *(name for name, is_on in chosen.items() if is_on))


def reports_of(plan: Plan, shard: Shard) -> list[str]:
    """The reports of all outputs of a version that belong to ``shard``."""
    stages = [stage for stage in stage_graph.SHARD_STAGES if stage_graph.runs_on(stage, shard)]
    return [paths.report_uri(plan, stage, shard.name) for stage in stages]


def checked_shards(plan: Plan, plan_uri: str, digest: str) -> list[Shard]:
    """Shards that `validate-shards` checked in this run, in the way of ``digest``."""

    def is_checked(shard: Shard) -> bool:
        done = report.read(paths.checked_shard_uri(plan, plan_uri, shard.name))
        return done is not None and done["digest"] == digest

    checked = read_ahead.side_by_side(is_checked, plan.shards)
    return [shard for shard, is_done in zip(plan.shards, checked, strict=True) if is_done]


def shared_folders(plan: Plan) -> Iterator[str]:
    """Output folders that ``plan`` shares with its base version."""
    if not plan.base:
        return
    yield paths.stage_folder(plan, "train-faiss-index")
    undamaged = replace(plan, condemned=())
    for shard in plan.shards:
        previous = digests.base_shard(plan, shard)
        if previous:
            for stage in ("tokenize-and-chunk", "embed-chunks"):
                yield paths.stage_folder(plan, stage, shard.name)
            # The base does not record its partial index; one that replaces a damaged index may be new.
            if shard.indexed and previous.indexed:
                partial_index = paths.stage_folder(plan, "build-faiss-index", shard.name)
                if partial_index == paths.stage_folder(undamaged, "build-faiss-index", shard.name):
                    yield partial_index
            if shard.queried and previous.neighbours == digests.neighbours_digest(plan, shard):
                yield paths.stage_folder(plan, "retrieve-neighbours", shard.name)
