"""Checks a dataset spec or an index spec and lists the files that break a rule."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from functools import partial

from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.quality.checked_shards import checked_digest, checked_shards, reports_of, shared_folders
from retro_ops.quality.checks import Folders, raise_findings, validate
from retro_ops.storage import store
from retro_ops.uris import parent

STAGE = "validate"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--spec", nargs="+", default=[], help="dataset specs or index specs to check")
    parser.add_argument(
        "--changed-only",
        action="store_true",
        help="check only presence and length of files shared with the base version, which was validated before",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="read every file, even if the store compared it with a checksum when it was uploaded",
    )
    parser.add_argument(
        "--recompute", type=float, default=0.0, help="share of blocks to recompute and compare (with --plan)"
    )


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not 0 <= arguments.recompute <= 1:
        raise BadInputError(f"--recompute {arguments.recompute} is not between 0 and 1", "give a share, such as 0.01")
    if not arguments.plan:
        if arguments.recompute:
            raise BadInputError("--recompute needs --plan", "the plan says which model and tokenizer to use")
        require_flags(arguments, "spec", remedy="name a dataset spec or an index spec, or give --plan")
        counts = validate(arguments.spec, [], frozenset(), thorough=arguments.thorough)
        say(f"{STAGE}: passed: " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
        return
    plan = read_plan(arguments.plan)
    specs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    uri, digest = paths.report_uri(plan, STAGE), checked_digest(plan, arguments.changed_only, arguments.thorough)
    if arguments.recompute:  # Requested explicitly, so an earlier report does not count.
        store.at(uri).delete(uri)
    trusted = set(shared_folders(plan)) if arguments.changed_only else set()
    if checked := checked_shards(plan, arguments.plan, digest):
        say(f"{STAGE}: {len(checked):,} of {len(plan.shards):,} shards were checked by validate-shards")
        trusted |= {parent(uri) for shard in checked for uri in reports_of(plan, shard)}
    work = partial(_work, arguments.plan, plan, specs, arguments.recompute, trusted, thorough=arguments.thorough)
    chosen = {"recompute": arguments.recompute, "changed_only": arguments.changed_only}
    report.run_once(STAGE, uri, digest, chosen, specs, work)


def _work(
    plan_uri: str, plan: Plan, specs: Sequence[str], share: float, trusted: Folders, *, thorough: bool
) -> report.Outcome:
    counts = validate(specs, list(_reports(plan)), trusted, thorough=thorough)
    if share:
        from retro_ops.quality import recompute

        checks = [recompute.embeddings(plan_uri, plan, share)]
        if plan.parameters.profile != "seed":  # That search stores the distances of the index, which are not exact.
            checks.append(recompute.distances(plan, share))
        raise_findings([finding for check in checks for finding in check])
    return report.Outcome(counts, outputs=[], details={"recomputed_share": share})


def _reports(plan: Plan) -> Iterator[str]:
    once = ("train-faiss-index", "merge-indexes", "tune-search", "write-specs", "describe")
    for stage, shard in stage_graph.tasks(plan, (*stage_graph.SHARD_STAGES, *once)):
        yield paths.report_uri(plan, stage, shard)
