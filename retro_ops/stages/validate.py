"""A dataset spec or an index spec -> sound, or a list of files and the rules they break."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.quality.checks import Folders, raise_findings, validate
from retro_ops.storage import store

HELP = "check a dataset against every rule of the formats"
PARAMETERS = ("memory_budget",)

STAGE = "validate"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--spec", nargs="+", default=[], help="dataset specs or index specs")
    parser.add_argument(
        "--changed-only",
        action="store_true",
        help="of files shared with the base version, which was validated, check only presence and length",
    )
    parser.add_argument("--recompute", type=float, default=0.0, help="share of blocks to compute again (with --plan)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not 0 <= arguments.recompute <= 1:
        raise BadInputError(f"--recompute {arguments.recompute} is not a share", "give a number from 0 to 1")
    if not arguments.plan:
        if arguments.recompute:
            raise BadInputError("--recompute needs --plan", "only a plan says which model and tokenizer made the files")
        if not arguments.spec:
            raise BadInputError("--spec is missing", "name a dataset spec or an index spec, or give --plan")
        counts = validate(arguments.spec, [], frozenset())
        say(f"{STAGE}: sound: " + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
        return
    plan = read_plan(arguments.plan)
    specs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    # A report on what changed does not stand for one on everything.
    of = ["changed only"] if arguments.changed_only else []
    uri, digest = paths.report_uri(plan, STAGE), digests.digest(digests.version_digest(plan), *of)
    trusted = frozenset(_shared(plan)) if arguments.changed_only else frozenset()
    if arguments.recompute:  # Asked for by hand, so what was found sound before is looked at again.
        store.at(uri).delete(uri)
    work = partial(_work, plan, specs, arguments.recompute, trusted)
    chosen = {"recompute": arguments.recompute, "changed_only": arguments.changed_only}
    report.run_once(STAGE, uri, digest, chosen, specs, work)


def _shared(plan: Plan) -> Iterator[str]:
    if not plan.base:
        return
    yield paths.stage_folder(plan, "train-faiss-index")
    undamaged = replace(plan, condemned=())
    for shard in plan.shards:
        former = digests.former_shard(plan, shard)
        if former:
            for stage in ("tokenize-and-chunk", "embed-chunks"):
                yield paths.stage_folder(plan, stage, shard.name)
            # The base does not say which partial index it had: one in the place of a damaged one may be new.
            if shard.indexed and former.indexed:
                partial_index = paths.stage_folder(plan, "build-faiss-index", shard.name)
                if partial_index == paths.stage_folder(undamaged, "build-faiss-index", shard.name):
                    yield partial_index
            if shard.queried and former.neighbours == digests.neighbours_digest(plan, shard):
                yield paths.stage_folder(plan, "retrieve-neighbours", shard.name)


def _work(plan: Plan, specs: Sequence[str], share: float, trusted: Folders) -> report.Outcome:
    counts = validate(specs, list(_reports(plan)), trusted)
    if share:
        from retro_ops.quality import recompute

        checks = [recompute.embeddings(plan, share)]
        if plan.parameters.profile != "seed":  # Its distances are the index's own.
            checks.append(recompute.distances(plan, share))
        raise_findings([finding for check in checks for finding in check])
    return report.Outcome(counts, outputs=[], details={"recomputed_share": share})


def _reports(plan: Plan) -> Iterator[str]:
    once = ("train-faiss-index", "merge-indexes", "tune-search", "write-specs", "describe")
    for stage, shard in stage_graph.tasks(plan, (*stage_graph.SHARD_STAGES, *once)):
        yield paths.report_uri(plan, stage, shard)
