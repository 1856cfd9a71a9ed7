"""Partial indexes -> train.index (training shards) and val.index (extended by the validation shards)."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import partial

from retro_ops import memory, uris
from retro_ops.errors import require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters, values_for
from retro_ops.plan.plan import Plan, Shard
from retro_ops.progress import Progress
from retro_ops.storage import read_ahead, store
from retro_ops.storage.base import Written

STAGE = "merge-indexes"


@dataclass(frozen=True)
class Step:
    """Append ``partials`` to the index so far, and write it to ``output``."""

    partials: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Job:
    base: str
    steps: tuple[Step, ...]
    reports: tuple[str, ...]
    report: str
    digest: str
    planned: bool = False
    """Whether each index lies in a folder with its report, and can be checked against it."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--base-index", help="trained index, or a filled one to extend")
    parser.add_argument("--partials", nargs="+", default=[], help="partial indexes, in the order of the index spec")
    parser.add_argument("--output-index", help="merged index to write")


def run(arguments: Namespace, parameters: Parameters) -> None:
    job = _planned_job(arguments.plan) if arguments.plan else _job(arguments)
    inputs = [job.base, *(uri for step in job.steps for uri in step.partials)]
    chosen = values_for(STAGE, parameters)
    report.run_once(STAGE, job.report, job.digest, chosen, inputs, lambda: _work(job, parameters))


def _planned_job(plan_uri: str) -> Job:
    plan = read_plan(plan_uri)
    known = _extended(plan)
    there, steps = len(known), []
    for split in plan.splits():
        indexed = plan.indexed(split)  # Those of validation begin with those of training.
        partials = tuple(paths.partial_index_uri(plan, shard.name) for shard in indexed[there:])
        steps.append(Step(partials, paths.index_uri(plan, split)))
        there = len(indexed)
    return Job(
        base=paths.base_index_uri(plan, "train") if known else paths.trained_index_uri(plan),
        steps=tuple(steps),
        reports=tuple(
            paths.report_uri(plan, "build-faiss-index", shard.name)
            for shard in stage_graph.shards_of(plan, "build-faiss-index")
        ),
        report=paths.report_uri(plan, STAGE),
        digest=digests.merge_digest(plan),
        planned=True,
    )


def _extended(plan: Plan) -> tuple[Shard, ...]:
    """Training shards of the base version's index, if they are the first of this plan, so that the index can grow."""
    previous = plan.base.indexed("train") if plan.base and plan.base.index else ()
    first = plan.indexed("train")[: len(previous)]
    same = [shard.name for shard in previous] == [shard.name for shard in first]
    return first if same and all(digests.base_shard(plan, s) for s in first) else ()


def _job(arguments: Namespace) -> Job:
    require_flags(arguments, "base_index", "output_index", remedy="name them, or give --plan")
    content = [store.at(uri).fingerprint(uri) for uri in (arguments.base_index, *arguments.partials)]
    return Job(
        base=arguments.base_index,
        steps=(Step(tuple(arguments.partials), arguments.output_index),),
        reports=tuple(uris.beside(uri, paths.REPORT) for uri in (arguments.base_index, *arguments.partials)),
        report=uris.beside(arguments.output_index, paths.REPORT),
        digest=digests.digest(digests.CODE_VERSIONS[STAGE], content),
    )


def _work(job: Job, parameters: Parameters) -> report.Outcome:
    from retro_ops.index import ivf_file

    made = read_ahead.side_by_side(report.read, job.reports)
    identity = report.check_same_identity(dict(zip(job.reports, made, strict=True)))
    if job.planned:
        used = (job.base, *(uri for step in job.steps for uri in step.partials))
        read_ahead.side_by_side(report.check_unchanged, used, read_ahead.READERS)
    vectors, outputs = _on_disk(job, ivf_file.memory_limit(parameters)) or _in_memory(job)
    return report.Outcome(counts={"vectors": vectors}, outputs=outputs, identity=identity)


def _on_disk(job: Job, limit: memory.MemoryLimit) -> tuple[int, list[Written]] | None:
    """Merges list by list: vectors of the last index, and the files written. None if the indexes fit into memory."""
    from retro_ops.index import ivf_file

    files = ivf_file.open_if_larger_than(limit, [job.base, *(uri for step in job.steps for uri in step.partials)])
    if files is None:
        return None
    whole, rest = files[0], files[1:]
    progress, outputs = Progress(STAGE, len(rest), "partial indexes"), []
    for step in job.steps:
        parts, rest = rest[: len(step.partials)], rest[len(step.partials) :]
        outputs.append(ivf_file.merge(whole, parts, step.output, memory.lists_at_once(limit.bytes)))
        progress.advance(len(parts))
        merged = ivf_file.open_lists(step.output, whole)
        assert merged, f"{step.output} is an index of lists"
        whole = merged
    progress.close()
    return whole.total, outputs


def _in_memory(job: Job) -> tuple[int, list[Written]]:
    from retro_ops.index import filling
    from retro_ops.index.faiss_files import load_index, save_index

    index = load_index(job.base, search=False)
    progress = Progress(STAGE, sum(len(step.partials) for step in job.steps), "partial indexes")
    outputs = []
    for step in job.steps:
        sizes = read_ahead.side_by_side(lambda uri: store.at(uri).size(uri), step.partials)
        loaded = read_ahead.ahead(
            (size, partial(load_index, uri, search=False)) for size, uri in zip(sizes, step.partials, strict=True)
        )
        for uri, index_of_shard in zip(step.partials, loaded, strict=True):
            filling.merge(index, index_of_shard, uri)
            progress.advance(1)
        outputs.append(save_index(index, step.output))
    progress.close()
    return int(index.ntotal), outputs
