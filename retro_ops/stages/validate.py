"""Checks a dataset spec or an index spec and lists the files that break a rule."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.quality.checks import Folders, raise_findings, validate
from retro_ops.storage import store

STAGE = "validate"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--spec", nargs="+", default=[], help="dataset specs or index specs to check")
    parser.add_argument(
        "--changed-only",
        action="store_true",
        help="check only presence and length of files shared with the base version, which was validated before",
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
        counts = validate(arguments.spec, [], frozenset())
        say(f"{STAGE}: passed: " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
        return
    plan = read_plan(arguments.plan)
    specs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    # A report with --changed-only must not count as a full one.
    mode = ["changed only"] if arguments.changed_only else []
    uri, digest = paths.report_uri(plan, STAGE), digests.digest(digests.version_digest(plan), *mode)
    trusted = frozenset(_shared(plan)) if arguments.changed_only else frozenset()
    if arguments.recompute:  # Requested explicitly, so an earlier report does not count.
        store.at(uri).delete(uri)
    work = partial(_work, plan, specs, arguments.recompute, trusted)
    chosen = {"recompute": arguments.recompute, "changed_only": arguments.changed_only}
    report.run_once(STAGE, uri, digest, chosen, specs, work)


def _shared(plan: Plan) -> Iterator[str]:
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


def _work(plan: Plan, specs: Sequence[str], share: float, trusted: Folders) -> report.Outcome:
    counts = validate(specs, list(_reports(plan)), trusted)
    if share:
        from retro_ops.quality import recompute

        checks = [recompute.embeddings(plan, share)]
        if plan.parameters.profile != "seed":  # That search stores the distances of the index, which are not exact.
            checks.append(recompute.distances(plan, share))
        raise_findings([finding for check in checks for finding in check])
    return report.Outcome(counts, outputs=[], details={"recomputed_share": share})


def _reports(plan: Plan) -> Iterator[str]:
    once = ("train-faiss-index", "merge-indexes", "tune-search", "write-specs", "describe")
    for stage, shard in stage_graph.tasks(plan, (*stage_graph.SHARD_STAGES, *once)):
        yield paths.report_uri(plan, stage, shard)
