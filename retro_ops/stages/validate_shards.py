"""Checks all files of a shard of a plan and lists those that break a rule: the part of `validate` that grows.

For large corpora. Until the version is published `validate` trusts these checks, and itself checks only what belongs to
no shard. Any worker can check any shard.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import cache, partial

from retro_ops.errors import require_flags
from retro_ops.execution import report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.plan.specs import DatasetShard
from retro_ops.quality.checked_shards import checked_digest, reports_of, shared_folders
from retro_ops.quality.checks import Folders, validate_shard
from retro_ops.storage import read_ahead
from retro_ops.storage.npy import open_npy

STAGE = "validate-shards"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--changed-only", action="store_true", help="as in `validate`")
    parser.add_argument("--thorough", action="store_true", help="as in `validate`")


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="without a plan, `retro-ops validate --spec` checks everything")
    plan = read_plan(arguments.plan)
    digest = checked_digest(plan, arguments.changed_only, arguments.thorough)
    trusted = frozenset(shared_folders(plan)) if arguments.changed_only else frozenset()
    index = cache(partial(_index, plan))

    def work(name: str) -> None:
        uri = paths.checked_shard_uri(plan, arguments.plan, name)
        inputs = reports_of(plan, plan.shard(name))
        check = partial(_work, plan, name, index, trusted, thorough=arguments.thorough)
        report.run_once(STAGE, uri, digest, {"changed_only": arguments.changed_only}, inputs, check)

    shard_groups.each(STAGE, plan, arguments.shard, work)


Index = tuple[list[str], list[int]]
"""Chunks and number of rows of each shard of an index."""


def _index(plan: Plan, split: Split) -> Index:
    shards = paths.index_shards(plan, split)
    rows = read_ahead.side_by_side(lambda shard: len(open_npy(shard.embeddings)), shards)
    return [shard.chunks for shard in shards], rows


def _work(
    plan: Plan, name: str, index_of: Callable[[Split], Index], trusted: Folders, *, thorough: bool
) -> report.Outcome:
    shard, reports = plan.shard(name), reports_of(plan, plan.shard(name))
    neighbours = paths.neighbours_uri(plan, name) if shard.queried else None
    queried = DatasetShard(**paths.chunks_files(plan, name), neighbours=neighbours) if neighbours else None
    index = index_of(shard.split) if queried else ([], [])
    counts = validate_shard(paths.index_shard(plan, name), queried, index, reports, trusted, thorough=thorough)
    return report.Outcome(counts=counts, outputs=[])
