"""Plans a run that rebuilds damaged and missing outputs."""

import logging
from argparse import Namespace
from dataclasses import replace

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.plan import Plan
from retro_ops.planning.base_version import with_base
from retro_ops.progress import say
from retro_ops.versions import audit, history
from retro_ops.versions.condemned import condemn, read_condemned


def plan_repair(arguments: Namespace, series: history.Series) -> Plan:
    """The plan of a repair: all shards, including failed ones, without the outputs that are damaged.

    Marks the damaged outputs as condemned, so that no other run uses them.
    """
    root = arguments.root.rstrip("/")
    if arguments.run:
        uri = audit.last_plan_uri(paths.plan_uri(root, arguments.dataset, arguments.run))
        previous = read_plan(uri)
        # It starts from the same version as the run, so it does not overwrite a version published since.
        whole = replace(previous, shards=audit.all_shards(uri), skipped=(), supersedes=previous.supersedes or 0)
    else:
        whole = previous = replace(read_plan(series.plan_uri()), supersedes=series.current)
    for name in arguments.shards:
        whole.shard(name)
    damaged = audit.unusable(audit.audit(previous, thorough=not arguments.quick), published=not arguments.run)
    for task in damaged:
        message = f"plan: {task.report}: {task.why}"
        say(message, logging.WARNING, event="damaged", stage=task.stage, shard=task.shard)
    built = [shard.name for shard in previous.shards]
    named = [name for name in arguments.shards if name in built]
    if not (damaged or named or arguments.run):
        return whole
    useless = tuple(audit.digests(previous, damaged, named))
    condemned = tuple(dict.fromkeys((*read_condemned(root, arguments.dataset), *useless)))
    # The records that are left out follow from the signatures of the previous plan, which are not made again.
    signed = {"sign-documents": digests.code_version(previous, "sign-documents")} if whole.deduplicated else {}
    plan = replace(whole, condemned=condemned, code_versions={**digests.CODE_VERSIONS, **signed})
    # The base is read from the specs of the version; if these are damaged, only the plan is left to start from.
    if not arguments.run and not any(task.stage == "write-specs" for task in damaged):
        plan = with_base(plan, series)
    audit.check_sources(plan)
    condemn(root, arguments.dataset, useless)
    return plan
