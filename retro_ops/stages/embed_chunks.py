"""chunks.npy -> embeddings.npy: each chunk decoded to text and embedded by a sentence-transformer."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from retro_ops import uris
from retro_ops.errors import BadInputError
from retro_ops.execution import report, shard_groups
from retro_ops.execution.checkpoints import Unfinished
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import Progress
from retro_ops.storage import store

if TYPE_CHECKING:
    from retro_ops.compute.device import Device
    from retro_ops.embedding.embedder import Embedder
    from retro_ops.tokens.tokenizer import Tokenizer

HELP = "embed chunks with a sentence-transformer"
PARAMETERS = ("tokenizer", "model", "embed_input", "batch_size", "device", "memory_budget")

STAGE = "embed-chunks"
BLOCK_ROWS = 1024
"""Chunks that are sorted by length, embedded and written together. A constant, so that padding is the same in every
run."""

GPU_BLOCK_ROWS = 8192
"""Chunks read and decoded together for a GPU, which takes them some ten times as fast; see ``embedding``."""


@dataclass(frozen=True)
class Job:
    chunks: str
    chunks_report: str
    embeddings: str
    report: str
    digest: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("chunks", nargs="?", help="chunks (.npy)")
    parser.add_argument("embeddings", nargs="?", help="embeddings to write (.npy)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        _run(_job(arguments, parameters), parameters, _Loaded())
        return
    plan = read_plan(arguments.plan)
    loaded = _Loaded()
    shard_groups.each(STAGE, plan, arguments.shard, lambda shard: _run(_planned_job(plan, shard), parameters, loaded))


@dataclass
class _Loaded:
    """What the shards of a group share, once the first of them needed it."""

    tokenizers: "dict[str, Tokenizer]" = field(default_factory=dict)
    where: "Device | None" = None
    model: "Embedder | None" = None

    def tokenizer(self, name: str) -> "Tokenizer":
        from retro_ops.tokens.tokenizer import Tokenizer

        if name not in self.tokenizers:
            self.tokenizers[name] = Tokenizer(name, pad_id=0)
        return self.tokenizers[name]

    def embedder(self, parameters: Parameters) -> "tuple[Embedder, Device]":
        """The model, made ready, and where it is."""
        from retro_ops.compute import device
        from retro_ops.embedding.embedder import Embedder

        if self.model is None or self.where is None:
            self.where = device.choose(parameters.device, "torch")
            self.model = Embedder(parameters.model, self.where, parameters.batch_size)
            self.model.prepare()
        return self.model, self.where


def _run(job: Job, parameters: Parameters, loaded: _Loaded) -> None:
    chosen = {name: getattr(parameters, name) for name in PARAMETERS}
    unfinished = Unfinished(paths.unfinished_folder(job.embeddings, job.digest))
    work = partial(_work, job, parameters, loaded, unfinished)
    report.run_once(STAGE, job.report, job.digest, chosen, [job.chunks], work, unfinished)


def _planned_job(plan: Plan, shard: str) -> Job:
    return Job(
        chunks=paths.chunks_files(plan, shard)["chunks"],
        chunks_report=paths.report_uri(plan, "tokenize-and-chunk", shard),
        embeddings=paths.embeddings_uri(plan, shard),
        report=paths.report_uri(plan, STAGE, shard),
        digest=digests.embed_digest(plan, plan.shard(shard)),
    )


def _job(arguments: Namespace, parameters: Parameters) -> Job:
    from retro_ops.tokens.tokenizer import name_digest

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
            digests.CODE_VERSIONS[STAGE], content, names, *digests.embed_input(parameters.embed_input)
        ),
    )


def _work(job: Job, parameters: Parameters, loaded: _Loaded, unfinished: Unfinished) -> report.Outcome:
    from retro_ops.tokens.encoders import sure_if_wrong

    return sure_if_wrong(STAGE, unfinished, lambda fast: _embed(job, parameters, loaded, unfinished, fast=fast))


def _embed(job: Job, parameters: Parameters, loaded: _Loaded, unfinished: Unfinished, *, fast: bool) -> report.Outcome:
    import numpy as np

    from retro_ops.compute import device
    from retro_ops.compute.workers import ahead, in_order
    from retro_ops.storage.npy import NpyWriter, open_npy

    chunks = open_npy(job.chunks, ndim=2, kind="u")
    of_chunks = report.read(job.chunks_report)
    tokenizer = loaded.tokenizer(_tokenizer_name(of_chunks, parameters))
    identity = {"tokenizer": tokenizer.digest, "chunk_size": chunks.shape[1]}
    identity = report.check_same_identity({job.chunks_report: of_chunks, job.embeddings: {"identity": identity}})
    embedder, where = loaded.embedder(parameters)
    prepare = embedder.inputs(tokenizer, parameters.embed_input, fast=fast)
    # A CPU has nothing to spare for processes beside the model, and they nothing to save.
    rows, processes = (BLOCK_ROWS, 1) if where.chosen == "cpu" else (GPU_BLOCK_ROWS, max(1, device.cores() - 2))
    with NpyWriter(job.embeddings, np.float16, (embedder.dimension,), rows=len(chunks)) as out:
        for part in unfinished.parts():
            out.append(part["embeddings"])
        progress = Progress(STAGE, len(chunks), "chunks", unfinished.end)
        # Read, prepared and embedded while what came before is written.
        with (
            ahead(block for _, block in chunks.blocks(rows, unfinished.end)) as blocks,
            ahead(in_order(prepare, blocks, processes)) as inputs,
            ahead(embedder.vectors(inputs)) as found,
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
        identity={**identity, "model": embedder.digest, "dimension": embedder.dimension},
        details={"model": parameters.model, **embedder.how, **unfinished.details()},
        device=where,
    )


def _tokenizer_name(of_chunks: dict[str, Any] | None, parameters: Parameters) -> str:
    """The tokenizer asked for, unless it is the default and the chunks say which one made them."""
    recorded = (of_chunks or {}).get("details", {}).get("tokenizer")
    if recorded and parameters.tokenizer == Parameters().tokenizer:
        return str(recorded)
    return parameters.tokenizer
