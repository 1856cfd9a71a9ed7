"""The plan that rebuilds what is damaged or missing."""

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
    """The plan of what is to be mended, with its failed shards, and without what is damaged of it."""
    root = arguments.root.rstrip("/")
    if arguments.run:
        uri = audit.last_plan_uri(paths.plan_uri(root, arguments.dataset, arguments.run))
        former = read_plan(uri)
        # It starts from the version that the run started from, and gives way to one that came since.
        whole = replace(former, shards=audit.all_shards(uri), skipped=(), supersedes=former.supersedes or 0)
    else:
        whole = former = replace(read_plan(series.plan_uri()), supersedes=series.current)
    for name in arguments.shards:
        whole.shard(name)
    found = audit.of_no_use(audit.look(former, thorough=not arguments.quick), published=not arguments.run)
    for entry in found:
        said = f"plan: {entry.report}: {entry.why}"
        say(said, logging.WARNING, event="damaged", stage=entry.stage, shard=entry.shard)
    built = [shard.name for shard in former.shards]
    named = [name for name in arguments.shards if name in built]
    if not (found or named or arguments.run):
        return whole
    useless = tuple(audit.digests(former, found, named))
    condemned = tuple(dict.fromkeys((*read_condemned(root, arguments.dataset), *useless)))
    plan = replace(whole, condemned=condemned, code_versions=dict(digests.CODE_VERSIONS))
    # Where the specs themselves are damaged, what they were written from is still known by the plan alone.
    if not arguments.run and not any(entry.stage == "write-specs" for entry in found):
        plan = with_base(plan, series)
    audit.check_sources(plan)
    condemn(root, arguments.dataset, useless)
    return plan
