"""chunks.npy -> embeddings.npy: decodes each chunk to text and embeds it with a sentence-transformer."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from retro_ops import uris
from retro_ops.compute.workers import ahead, in_order
from retro_ops.embedding.embedder import Embedder, open_embedder
from retro_ops.errors import BadInputError
from retro_ops.execution import report, shard_groups
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.execution.plan_files import read_plan
from retro_ops.execution.shard_groups import Shared
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters, set_later, values_for
from retro_ops.plan.plan import Plan
from retro_ops.progress import Progress, say
from retro_ops.storage import store
from retro_ops.storage.npy import NpyWriter, open_npy
from retro_ops.tokens.encoders import retry_with_reference
from retro_ops.tokens.tokenizer import Tokenizer, name_digest, planned

STAGE = "embed-chunks"
BLOCK_ROWS = 1024
"""Chunks that are sorted by length, embedded and written together. A constant, so that padding is the same in every
run."""

GPU_BLOCK_ROWS = 8192
"""Chunks that are read and decoded together for a GPU, which embeds them some ten times as fast."""


@dataclass(frozen=True)
class Job:
    chunks: str
    chunks_report: str
    embeddings: str
    report: str
    digest: str
    tokenizer: Callable[[], Tokenizer] | None = None
    """Loads that of the plan."""
    model_digest: str | None = None
    """That in the plan."""


@dataclass
class _Models:
    """The tokenizer of the chunks and the embedding model, which the shards of a group share."""

    tokenizer: Shared[Tokenizer] = field(default_factory=Shared)
    embedder: Shared[Embedder] = field(default_factory=Shared)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("chunks", nargs="?", help="chunks (.npy)")
    parser.add_argument("embeddings", nargs="?", help="embeddings to write (.npy)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    models = _Models()
    if not arguments.plan:
        _run(_job(arguments, parameters), parameters, models)
        return
    plan = read_plan(arguments.plan)
    tokenizer = partial(planned, arguments.plan, plan)
    shard_groups.each(
        STAGE, plan, arguments.shard, lambda shard: _run(_planned_job(plan, shard, tokenizer), parameters, models)
    )


def _run(job: Job, parameters: Parameters, models: _Models) -> None:
    chosen = values_for(STAGE, parameters)
    unfinished = Checkpoints(paths.unfinished_folder(job.embeddings, job.digest))
    work = partial(_work, job, parameters, models, unfinished)
    report.run_once(STAGE, job.report, job.digest, chosen, [job.chunks], work, unfinished)


def _planned_job(plan: Plan, shard: str, tokenizer: Callable[[], Tokenizer]) -> Job:
    return Job(
        chunks=paths.chunks_files(plan, shard)["chunks"],
        chunks_report=paths.report_uri(plan, "tokenize-and-chunk", shard),
        embeddings=paths.embeddings_uri(plan, shard),
        report=paths.report_uri(plan, STAGE, shard),
        digest=digests.embed_digest(plan, plan.shard(shard)),
        tokenizer=tokenizer,
        model_digest=plan.identity.model_digest,
    )


def _job(arguments: Namespace, parameters: Parameters) -> Job:

    if not arguments.embeddings:
        raise BadInputError(
            "name the chunks to read and the embeddings to write, in this order", "or give --plan and --shard"
        )
    content = store.at(arguments.chunks).fingerprint(arguments.chunks)
    names = [name_digest(parameters.tokenizer), name_digest(parameters.model)]
    return Job(
        chunks=arguments.chunks,
        chunks_report=uris.beside(arguments.chunks, paths.REPORT),
        embeddings=arguments.embeddings,
        report=uris.beside(arguments.embeddings, paths.REPORT),
        digest=digests.digest(
            digests.CODE_VERSIONS[STAGE],
            content,
            names,
            *digests.embed_input(parameters.embed_input),
            *set_later(parameters, STAGE),
        ),
    )


def _work(job: Job, parameters: Parameters, models: _Models, unfinished: Checkpoints) -> report.Outcome:

    return retry_with_reference(STAGE, unfinished, lambda fast: _embed(job, parameters, models, unfinished, fast=fast))


def _embed(job: Job, parameters: Parameters, models: _Models, unfinished: Checkpoints, *, fast: bool) -> report.Outcome:

    from retro_ops.compute.device import cores

    chunks = open_npy(job.chunks, ndim=2, kind="u")
    of_chunks = report.read(job.chunks_report)
    name = _tokenizer_name(of_chunks, parameters)
    tokenizer = models.tokenizer.get(name, job.tokenizer or (lambda: Tokenizer.load(name, pad_id=0)))
    identity = {"tokenizer": tokenizer.digest, "chunk_size": chunks.shape[1]}
    identity = report.check_same_identity({job.chunks_report: of_chunks, job.embeddings: {"identity": identity}})
    embedder = models.embedder.get(parameters.model, lambda: _open_embedder(job, parameters))
    where = embedder.device
    prepare = embedder.inputs(tokenizer, parameters.embed_input, fast=fast)
    # On a CPU the model takes all cores, so processes beside it would save nothing.
    rows, processes = (BLOCK_ROWS, 1) if where.chosen == "cpu" else (GPU_BLOCK_ROWS, max(1, cores() - 2))
    with NpyWriter(job.embeddings, np.float16, (embedder.model.dimension,), rows=len(chunks)) as out:
        for part in unfinished.parts():
            out.append(part["embeddings"])
        progress = Progress(STAGE, len(chunks), "chunks", unfinished.end)
        # Blocks are read, prepared and embedded while the embeddings before them are written.
        with (
            ahead(block for _, block in chunks.blocks(rows, unfinished.end)) as blocks,
            ahead(in_order(prepare, blocks, processes)) as inputs,
            ahead(embedder.vectors(inputs, unfinished.end)) as found,
        ):
            for embeddings in found:
                out.append(embeddings)
                progress.advance(len(embeddings))
                unfinished.add({"embeddings": embeddings}, unfinished.end + len(embeddings))
                unfinished.commit_when_due()
        progress.close()
        written = out.close()
    return report.Outcome(
        counts={"chunks": len(chunks)},
        outputs=[written],
        identity={**identity, "model": embedder.model.digest, "dimension": embedder.model.dimension},
        details={
            "model": parameters.model,
            **({"prompt": embedder.model.prompt} if embedder.model.prompt else {}),
            **embedder.how,
            **unfinished.details(),
        },
        device=where,
    )


def _open_embedder(job: Job, parameters: Parameters) -> Embedder:
    from retro_ops.compute.device import choose

    where = choose(parameters.device, "torch")
    say(f"{STAGE}: loading {parameters.model} and choosing its fastest backend, on {where.chosen} ({where.why})")
    embedder = open_embedder(parameters, where, job.model_digest)
    say(f"{STAGE}: {embedder.how['way']} in {embedder.how['dtype']} ({embedder.how['why']})")
    return embedder


def _tokenizer_name(of_chunks: dict[str, Any] | None, parameters: Parameters) -> str:
    """The tokenizer in ``parameters``, unless it is the default and the report of the chunks names another."""
    recorded = (of_chunks or {}).get("details", {}).get("tokenizer")
    if recorded and parameters.tokenizer == Parameters().tokenizer:
        return str(recorded)
    return parameters.tokenizer
