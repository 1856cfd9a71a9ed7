"""Embeddings of all training shards -> trained.index, without vectors."""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory, uris
from retro_ops.compute import device
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import budgets, report
from retro_ops.execution.plan_files import read_plan
from retro_ops.index.sampling import ranges, run_rows, sample_in_runs
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import PARAMETERS, Parameters, values_for
from retro_ops.plan.specs import index_spec_from_json
from retro_ops.progress import Progress, say
from retro_ops.sizes import limit_in_words, parse_bytes
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyReader, open_npy

STAGE = "train-faiss-index"
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Job:
    embeddings: tuple[str, ...]
    embeddings_reports: tuple[str, ...]
    output: str
    report: str
    digest: str
    pinned: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--spec", help="index spec whose embeddings are sampled")
    parser.add_argument("--output", help="trained index to write")


def run(arguments: Namespace, parameters: Parameters) -> None:
    job = _planned_job(arguments.plan) if arguments.plan else _job(arguments, parameters)
    chosen = values_for(STAGE, parameters)
    report.run_once(STAGE, job.report, job.digest, chosen, job.embeddings, lambda: _work(job, parameters))


def _planned_job(plan_uri: str) -> Job:
    plan = read_plan(plan_uri)
    shards = plan.indexed("train")
    return Job(
        embeddings=tuple(paths.embeddings_uri(plan, shard.name) for shard in shards),
        embeddings_reports=tuple(paths.report_uri(plan, "embed-chunks", shard.name) for shard in shards),
        output=paths.trained_index_uri(plan),
        report=paths.report_uri(plan, STAGE),
        digest=digests.train_digest(plan),
        pinned=plan.base is not None,
    )


def _job(arguments: Namespace, parameters: Parameters) -> Job:
    require_flags(arguments, "spec", "output", remedy="name them, or give --plan")
    embeddings = tuple(shard.embeddings for shard in index_spec_from_json(store.read(arguments.spec), arguments.spec))
    settings = [value for name, value in values_for(STAGE, parameters).items() if PARAMETERS[name].decides]
    content = [store.at(uri).fingerprint(uri) for uri in embeddings]
    return Job(
        embeddings=embeddings,
        embeddings_reports=tuple(uris.beside(uri, paths.REPORT) for uri in embeddings),
        output=arguments.output,
        report=uris.beside(arguments.output, paths.REPORT),
        digest=digests.digest(digests.CODE_VERSIONS[STAGE], content, settings),
    )


def _work(job: Job, parameters: Parameters) -> report.Outcome:

    from retro_ops.index import drift, faiss_index, index_types, training
    from retro_ops.index.faiss_files import save_index

    if job.pinned:  # A new training would not fit the codes that are stored.
        raise BadInputError(f"the trained index of the base version is missing: {job.output}", "repair the dataset")
    shards = read_ahead.side_by_side(partial(open_npy, ndim=2, kind="f", finite=True), job.embeddings)
    if not sum(map(len, shards)):
        raise BadInputError("there are no embeddings to train an index on", "check that the corpus holds documents")
    dimension = shards[0].shape[1]
    made = read_ahead.side_by_side(report.read, job.embeddings_reports)
    identity = report.check_same_identity(dict(zip(job.embeddings_reports, made, strict=True)))
    index_type, why = _index_type(parameters, sum(map(len, shards)), dimension)
    index = index_types.make_index(index_type, dimension)
    wanted = parameters.max_training_vectors or training.training_vectors(index)
    on_tensor_cores = training.on_tensor_cores(index)
    where = device.choose(parameters.device, "torch" if on_tensor_cores else "faiss")
    half = on_tensor_cores and where.chosen == "cuda"  # faiss takes float32 only.
    vectors = _sample(shards, wanted, parameters, np.dtype(np.float16 if half else np.float32))
    lists = faiss_index.list_count(index)
    if len(vectors) < lists * index_types.LEAST_POINTS_PER_LIST:
        say(
            f"{STAGE}: {len(vectors):,} vectors train {lists:,} lists; faiss advises "
            f"{lists * index_types.LEAST_POINTS_PER_LIST:,} or more, so choose fewer lists for a corpus of this size",
            event="few_training_vectors",
        )
    say(f"{STAGE}: training {index_type} ({why}) on {len(vectors):,} vectors, {where.chosen} ({where.why})")
    training.train(index, vectors, parameters.seed, index_type, where)
    outputs = [save_index(index, job.output)]
    fit = drift.measure(index, shards, parameters.seed)  # Adds vectors to the index, so it comes after saving.
    return report.Outcome(
        counts={"training_vectors": len(vectors), "vectors": sum(map(len, shards)), "lists": lists},
        outputs=outputs,
        identity={**identity, "dimension": dimension},
        details={"index_type": index_type, "why": why, "fit": fit.as_json()},
        device=where,
    )


def _index_type(parameters: Parameters, vectors: int, dimension: int) -> tuple[str, str]:
    """The factory string to train, and the reason for it."""
    from retro_ops.index import index_types

    requested = parameters.index_type
    memory = parse_bytes(parameters.index_memory) if parameters.index_memory else None
    trained_on = min(vectors, parameters.max_training_vectors or vectors)
    if requested == index_types.AUTO:
        return index_types.choose_index_type(vectors, dimension, memory, trained_on)
    reason = index_types.too_small(index_types.make_index(requested, dimension), trained_on)
    if reason is None or parameters.index_too_small == "fail":
        return requested, "as asked for"  # If faiss cannot train it, the error says what to do.
    chosen, why = index_types.choose_index_type(vectors, dimension, memory, trained_on)
    say(f"{STAGE}: {requested} becomes {chosen}: {reason}", logging.WARNING, event="downgraded")
    return chosen, f"instead of {requested}, as {reason}; {why}"


def _sample(shards: Sequence[NpyReader], wanted: int, parameters: Parameters, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A sample over all shards, ``[n, d]``, in runs of rows. BadInputError if it exceeds its memory limit."""

    counts = np.array([len(shard) for shard in shards], np.int64)
    dimension = shards[0].shape[1]
    taken = min(wanted, int(counts.sum()))
    row_bytes = dimension * dtype.itemsize
    needed = taken * row_bytes
    limit = _memory_limit(parameters)
    if needed > limit.bytes:
        raise BadInputError(
            f"{taken:,} training vectors of {dimension} dimensions need {limit_in_words(needed)}, "
            f"the limit is {limit_in_words(limit.bytes)} ({limit.why})",
            f"raise --memory-budget, or set --max-training-vectors to {limit.bytes // row_bytes:,} or less",
        )
    for shard in shards:
        _check_dimension(shard, dimension)
    vectors = np.empty((taken, dimension), dtype)
    filled = 0
    progress = Progress(STAGE, taken, "vectors")
    for rows in read_ahead.ahead(_reads(shards, sample_in_runs(counts, wanted, parameters.seed), run_rows(taken))):
        vectors[filled : filled + len(rows)] = rows
        filled += len(rows)
        progress.advance(len(rows))
    progress.close()
    return vectors


def _memory_limit(parameters: Parameters) -> memory.MemoryLimit:
    return memory.training_sample(budgets.chosen(parameters))


def _reads(
    shards: Sequence[NpyReader], sample: Sequence[NDArray[np.int64]], gap: int
) -> Iterator[read_ahead.Read[NDArray[Any]]]:
    """Reads of the rows ``sample`` of each shard, in order. Gaps of up to ``gap`` rows are read along."""

    def read(shard: NpyReader, rows: NDArray[np.int64]) -> NDArray[Any]:
        first = int(rows[0])
        return shard.rows(first, int(rows[-1]) + 1)[rows - first]

    for shard, rows in zip(shards, sample, strict=True):
        for start, stop in ranges(rows, gap, BLOCK_ROWS):
            some = rows[start:stop]
            # Twice: as read, and without the gaps.
            yield 2 * int(some[-1] + 1 - some[0]) * shard.row_bytes, partial(read, shard, some)


def _check_dimension(shard: NpyReader, dimension: int) -> None:
    if shard.shape[1] != dimension:
        raise BadInputError(
            f"{shard.uri} has {shard.shape[1]} dimensions, the other shards have {dimension}",
            "embed all shards with one model",
        )
