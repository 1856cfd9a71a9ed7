"""Trained index + embeddings -> filled index of a whole index spec, or of one shard (a partial index)."""

import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import Any

from retro_ops import uris
from retro_ops.compute import device
from retro_ops.errors import BadInputError
from retro_ops.execution import report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.execution.shard_groups import Shared
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters, values_for
from retro_ops.plan.plan import Plan
from retro_ops.plan.specs import index_spec_from_json
from retro_ops.progress import Progress
from retro_ops.storage import store
from retro_ops.storage.npy import NpyWriter, open_npy

STAGE = "build-faiss-index"
BLOCK_ROWS = 16_384
"""Vectors added at a time. A constant multiple of faiss' own blocks, counted from the start of each shard, so that a
partial index holds the same codes as one serial build on the same device."""


@dataclass(frozen=True)
class Job:
    trained_index: str
    trained_report: str
    embeddings: tuple[str, ...]
    embeddings_reports: tuple[str, ...]
    output: str
    report: str
    digest: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--spec", help="index spec to add, shard by shard")
    parser.add_argument("--trained-index", help="trained index to fill")
    parser.add_argument("--output-index", help="filled index to write")
    parser.add_argument(
        "--only-shard",
        type=int,
        metavar="N",
        help="add only shard N of the spec (from 0): a partial index with ids from 0, which merge-indexes "
        "moves to the offset of the shard",
    )


def run(arguments: Namespace, parameters: Parameters) -> None:
    trained: Shared[Any] = Shared()
    if not arguments.plan:
        _run(_job(arguments), parameters, trained)
        return
    plan = read_plan(arguments.plan)
    shard_groups.each(STAGE, plan, arguments.shard, lambda shard: _run(_planned_job(plan, shard), parameters, trained))


def _run(job: Job, parameters: Parameters, trained: Shared[Any]) -> None:
    chosen = values_for(STAGE, parameters)
    inputs = [job.trained_index, *job.embeddings]
    report.run_once(STAGE, job.report, job.digest, chosen, inputs, lambda: _work(job, parameters, trained))


def _planned_job(plan: Plan, shard: str) -> Job:
    return Job(
        trained_index=paths.trained_index_uri(plan),
        trained_report=paths.report_uri(plan, "train-faiss-index"),
        embeddings=(paths.embeddings_uri(plan, shard),),
        embeddings_reports=(paths.report_uri(plan, "embed-chunks", shard),),
        output=paths.partial_index_uri(plan, shard),
        report=paths.report_uri(plan, STAGE, shard),
        digest=digests.partial_index_digest(plan, plan.shard(shard)),
    )


def _job(arguments: Namespace) -> Job:
    if not (arguments.spec and arguments.trained_index and arguments.output_index):
        raise BadInputError(
            "--spec, --trained-index and --output-index are all needed", "name them, or give --plan and --shard"
        )
    shards = index_spec_from_json(store.read(arguments.spec), arguments.spec)
    if arguments.only_shard is not None:
        if not 0 <= arguments.only_shard < len(shards):
            raise BadInputError(f"{arguments.spec} has shards 0 to {len(shards) - 1}, not {arguments.only_shard}")
        shards = (shards[arguments.only_shard],)
    embeddings = tuple(shard.embeddings for shard in shards)
    content = [store.at(uri).fingerprint(uri) for uri in (arguments.trained_index, *embeddings)]
    return Job(
        trained_index=arguments.trained_index,
        trained_report=uris.beside(arguments.trained_index, paths.REPORT),
        embeddings=embeddings,
        embeddings_reports=tuple(uris.beside(uri, paths.REPORT) for uri in embeddings),
        output=arguments.output_index,
        report=uris.beside(arguments.output_index, paths.REPORT),
        digest=digests.digest(digests.CODE_VERSIONS[STAGE], content),
    )


def _load_trained(uri: str) -> Any:
    """The trained faiss index. BadInputError if it holds vectors."""
    from retro_ops.index.faiss_files import load_index

    index = load_index(uri, search=False)
    if index.ntotal:
        raise BadInputError(f"{uri} already holds {index.ntotal:,} vectors", "give the trained index")
    return index


def _work(job: Job, parameters: Parameters, trained: Shared[Any]) -> report.Outcome:
    import numpy as np

    from retro_ops.index import faiss_index, filling, training
    from retro_ops.index.faiss_files import save_index

    reports = (job.trained_report, *job.embeddings_reports)
    identity = report.check_same_identity({uri: report.read(uri) for uri in reports})
    index = trained.get(job.trained_index, lambda: _load_trained(job.trained_index))
    index.reset()  # The shard before filled it, and is saved.
    shards = [open_npy(uri, ndim=2, kind="f", finite=True) for uri in job.embeddings]
    for shard in shards:
        if shard.shape[1] != index.d:
            raise BadInputError(
                f"{shard.uri} has {shard.shape[1]} dimensions, {job.trained_index} was trained on {index.d}",
                "embed with the model that the index was trained for",
            )
    if training.on_tensor_cores(index):
        where = device.choose(parameters.device, "torch")
    else:
        where = device.Device("cpu", "faiss fills this type on the CPU, where the order of ids is certain")
    total = sum(map(len, shards))
    progress, started = Progress(STAGE, total, "vectors"), time.monotonic()
    for shard in shards:
        filling.fill(index, (block for _, block in shard.blocks(BLOCK_ROWS)), progress.advance, where)
    progress.close()
    fill_s = time.monotonic() - started
    if index.ntotal != total:
        raise RuntimeError(f"the index holds {index.ntotal} vectors after adding {total}")
    lists = faiss_index.list_numbers(index).astype(np.int32)
    with NpyWriter(paths.lists_uri(job.output), np.int32, rows=total) as writer:
        writer.append(lists)
        written = writer.close()
    return report.Outcome(
        counts={"vectors": total},
        outputs=[save_index(index, job.output), written],
        identity=identity,
        details={"fill_seconds": round(fill_s, 3)},
        device=where,
    )
