"""Documents (JSON lines, Parquet) -> chunks.npy, seq2chunk.npy, chunk2seq.npy and the documents sidecar."""

import contextlib
import functools
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

from retro_ops import uris
from retro_ops.compute import device
from retro_ops.compute.workers import ahead, in_order
from retro_ops.corpus import finding, json_lines, line_streams, source_lines
from retro_ops.corpus.batches import batches as in_batches
from retro_ops.corpus.left_out import LeftOut
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report, shard_groups
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters, set_later, values_for
from retro_ops.plan.plan import Plan
from retro_ops.progress import Progress, say
from retro_ops.storage import store
from retro_ops.tokens import chunk_batches
from retro_ops.tokens.chunking import token_dtype
from retro_ops.tokens.encoders import retry_with_reference
from retro_ops.tokens.tokenizer import Tokenizer, name_digest, planned
from retro_ops.tokens.writer import Job, Outputs

STAGE = "tokenize-and-chunk"
BATCH_BYTES = 2**21
"""Lines that a process tokenises at a time: the encodings, some 60 times as large as the text, stay small."""

BATCH_DOCUMENTS = 4096
"""Bounds a batch of short or empty documents and bad records, whose objects take far more memory than their text."""

PARALLEL_BYTES = 16 * 2**20
"""Size of a corpus from which worker processes, which take a second to start, save more than they cost."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="*", help="JSONL or Parquet files, folders or patterns; - or none: JSONL from stdin"
    )
    parser.add_argument("--chunks-out", help="token ids of the chunks (.npy)")
    parser.add_argument("--seq2chunk-index-out", help="first chunk of each document (.npy)")
    parser.add_argument("--chunk2seq-index-out", help="document of each chunk (.npy)")
    parser.add_argument("--documents-out", help="document ids and sources (default: beside the chunks)")
    parser.add_argument("--quarantine-out", help="bad records (default: beside the chunks)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        load = partial(Tokenizer.load, parameters.tokenizer, parameters.pad_id)
        _run(_job(arguments, parameters), parameters, load)
        return
    plan = read_plan(arguments.plan)
    # Loaded for the first shard of a group that has work to do.
    tokenizer = functools.cache(partial(planned, arguments.plan, plan))
    shard_groups.each(
        STAGE, plan, arguments.shard, lambda shard: _run(_planned_job(plan, shard), parameters, tokenizer)
    )


def _run(job: Job, parameters: Parameters, tokenizer: Callable[[], Tokenizer]) -> None:
    chosen = values_for(STAGE, parameters)
    # Standard input cannot be read again.
    folder = None if line_streams.STDIN in job.sources else paths.unfinished_folder(job.chunks, job.digest)
    unfinished = Checkpoints(folder)
    work = partial(_work, job, parameters, tokenizer, unfinished)
    report.run_once(STAGE, job.report, job.digest, chosen, job.sources, work, unfinished)


def _planned_job(plan: Plan, shard: str) -> Job:
    if plan.parameters.drops_documents and not plan.deduplicated:
        raise BadInputError(
            "the plan drops duplicates or contaminated documents, but they have not been found yet",
            "run `sign-documents` for each shard and `find-duplicates`, and continue with the plan that it writes: "
            "plan.deduplicated.json",
        )
    sources = plan.shard(shard).sources
    files = paths.chunks_files(plan, shard)
    return Job(
        tuple(source.uri for source in sources),
        **files,
        documents=paths.documents_uri(files["chunks"]),
        quarantine=paths.quarantine_uri(files["chunks"]),
        report=paths.report_uri(plan, STAGE, shard),
        digest=digests.tokenize_digest(plan, plan.shard(shard)),
        line_bytes=digests.line_limit(plan.parameters),
        planned=sources,
        without=plan.shard(shard).without,
        contaminated=plan.shard(shard).contaminated,
    )


def _job(arguments: Namespace, parameters: Parameters) -> Job:
    wanted = ("chunks_out", "seq2chunk_index_out", "chunk2seq_index_out")
    require_flags(arguments, *wanted, remedy="name the three output files, or give --plan and --shard")
    inputs = arguments.inputs or [line_streams.STDIN]
    stdin = line_streams.STDIN in inputs
    sources = tuple(inputs) if stdin else tuple(uri for pattern in inputs for uri in finding.find(pattern))
    # Standard input has no fingerprint beforehand, so such a run never counts as done.
    content = uuid.uuid4().hex if stdin else [store.at(uri).fingerprint(uri) for uri in sources]
    settings = {
        name: value
        for name, value in values_for(STAGE, parameters).items()
        if name not in ("memory_budget", "longest_line", "text_field")
    }
    settings["tokenizer"] = name_digest(parameters.tokenizer)
    line_bytes = digests.line_limit(parameters)
    cut, later = digests.cut_shard(parameters.max_chunks), set_later(parameters, STAGE)
    # The names as well: an output under another name is another output.
    outputs = [arguments.chunks_out, arguments.seq2chunk_index_out, arguments.chunk2seq_index_out]
    outputs += [arguments.documents_out, arguments.quarantine_out]
    return Job(
        sources,
        chunks=arguments.chunks_out,
        seq2chunk=arguments.seq2chunk_index_out,
        chunk2seq=arguments.chunk2seq_index_out,
        documents=arguments.documents_out or paths.documents_uri(arguments.chunks_out),
        quarantine=arguments.quarantine_out or paths.quarantine_uri(arguments.chunks_out),
        report=uris.beside(arguments.chunks_out, paths.REPORT),
        digest=digests.digest(digests.CODE_VERSIONS[STAGE], content, settings, outputs, line_bytes, *cut, *later),
        line_bytes=line_bytes,
    )


def _work(
    job: Job, parameters: Parameters, tokenizer: Callable[[], Tokenizer], unfinished: Checkpoints
) -> report.Outcome:

    loaded = tokenizer()
    return retry_with_reference(
        STAGE, unfinished, lambda fast: _tokenise(job, parameters, loaded, unfinished, fast=fast)
    )


def _tokenise(
    job: Job, parameters: Parameters, tokenizer: Tokenizer, unfinished: Checkpoints, *, fast: bool
) -> report.Outcome:

    dtype = token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    size, limit = parameters.chunk_size, parameters.max_chunks
    _check_unchanged(job, unfinished)
    settings = chunk_batches.Settings(
        *(tokenizer.encoding, fast, size, tokenizer.pad_id, str(dtype), parameters.on_bad_record, job.line_bytes),
        parameters.text_field,
    )
    full, package, left_out = False, None, LeftOut(job.without, job.contaminated)
    store.at(job.quarantine).delete(job.quarantine)
    with contextlib.ExitStack() as stack:
        out = Outputs(stack, job, dtype, size)
        for part in unfinished.parts():
            out.append(part)
        out.blank_lines = unfinished.state.get("blank_lines", 0)
        progress = Progress(STAGE, None, "documents", out.documents)
        read = source_lines.lines(job.sources, job.line_bytes, parameters.text_field, first=unfinished.end)
        lines = left_out.skip(read, unfinished.end)
        # Lines are read and tokenised while the chunks before them are written.
        batches = stack.enter_context(ahead(in_batches(lines, BATCH_BYTES, BATCH_DOCUMENTS)))
        processes = device.cores() if json_lines.exceeds(job.sources, PARALLEL_BYTES) else 1
        made = in_order(partial(chunk_batches.maker, settings), batches, processes)
        for piece in stack.enter_context(ahead(made)):
            package = piece.package
            fits = len(piece.sidecar) if limit is None else piece.fitting(limit - out.chunks)
            full = fits < len(piece.sidecar)
            piece = piece.cut(fits) if full else piece
            part = piece.part(out.documents, out.chunks)
            out.append(part)
            out.blank_lines += piece.blank_lines
            out.check_first(parameters.max_bad_share)
            progress.advance(fits)
            if full:
                say(
                    f"{STAGE}: stopped before the first document that passes --max-chunks {limit:,}", event="max_chunks"
                )
                break
            unfinished.add(part, left_out.records(out.lines))
            unfinished.commit_when_due({"blank_lines": out.blank_lines})
        progress.close()
        _check_unchanged(job, unfinished)
        out.check_share(parameters.max_bad_share)
        written = out.close()
    json_lines.say_bad(STAGE, out.bad_records, out.documents, out.first_bad, job.quarantine)
    return report.Outcome(
        counts={
            "documents": out.documents,
            "chunks": out.chunks,
            "bad_records": out.bad_records,
            **left_out.counts(out.lines, full),
        },
        outputs=written,
        identity={"tokenizer": tokenizer.digest, "chunk_size": size, "pad_id": tokenizer.pad_id},
        details={
            "tokenizer": parameters.tokenizer,
            "encoded_by": package,
            "token_dtype": str(dtype),
            "stopped_at_max_chunks": full,
            **({"first_bad_record": str(out.first_bad)} if out.first_bad else {}),
            **unfinished.details(),
        },
    )


def _check_unchanged(job: Job, unfinished: Checkpoints) -> None:
    """BadInputError if a source is not as planned: the output is named after the planned content."""
    try:
        json_lines.check_unchanged(job.planned)
    except BadInputError:
        unfinished.delete()  # They may hold the other content.
        raise
