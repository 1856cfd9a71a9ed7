"""Documents in JSON lines -> chunks.npy, seq2chunk.npy, chunk2seq.npy and the documents sidecar."""

import contextlib
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from retro_ops import corpus, layout, report, store
from retro_ops.blocks import Part, Unfinished
from retro_ops.errors import BadInputError
from retro_ops.plans import read_plan
from retro_ops.progress import Progress, say
from retro_ops.specs import Parameters, Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HELP = "tokenise documents (JSON lines) and cut them into chunks"
PARAMETERS = (
    "tokenizer",
    "pad_id",
    "chunk_size",
    "max_chunks",
    "token_dtype",
    "on_bad_record",
    "max_bad_share",
    "memory_budget",
)

STAGE = "tokenize-and-chunk"
BATCH_BYTES = 2**21
"""Text tokenised at a time: enough for all cores, and the encodings (some 60 times the text) stay small."""

BATCH_DOCUMENTS = 4096
"""Bounds a batch of short or empty documents, whose objects cost far more than their text; bad records likewise."""


@dataclass(frozen=True)
class Job:
    sources: tuple[str, ...]
    chunks: str
    seq2chunk: str
    chunk2seq: str
    documents: str
    quarantine: str
    report: str
    digest: str
    line_bytes: int
    planned: tuple[Source, ...] = ()
    """The sources as the plan found them, whose content the digest stands for."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="*", help="JSONL files, folders or patterns; - or none: standard input")
    parser.add_argument("--chunks-out", help="token ids of the chunks (.npy)")
    parser.add_argument("--seq2chunk-index-out", help="first chunk of each document (.npy)")
    parser.add_argument("--chunk2seq-index-out", help="document of each chunk (.npy)")
    parser.add_argument("--documents-out", help="document ids and sources (default: beside the chunks)")
    parser.add_argument("--quarantine-out", help="bad records (default: beside the chunks)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    job = _planned_job(arguments.plan, arguments.shard) if arguments.plan else _job(arguments, parameters)
    chosen = {name: getattr(parameters, name) for name in PARAMETERS}
    # Standard input cannot be read again.
    folder = None if corpus.STDIN in job.sources else layout.unfinished_folder(job.chunks, job.digest)
    unfinished = Unfinished(folder)
    work = partial(_work, job, parameters, unfinished)
    report.run_once(STAGE, job.report, job.digest, chosen, job.sources, work, unfinished)


def _planned_job(plan_uri: str, shard: str) -> Job:
    plan = read_plan(plan_uri)
    sources = plan.shard(shard).sources
    files = layout.chunks_files(plan, shard)
    return Job(
        tuple(source.uri for source in sources),
        **files,
        documents=layout.documents_uri(files["chunks"]),
        quarantine=layout.quarantine_uri(files["chunks"]),
        report=layout.report_uri(plan, STAGE, shard),
        digest=layout.tokenize_digest(plan, plan.shard(shard)),
        line_bytes=layout.line_limit(plan.parameters.memory_budget),
        planned=sources,
    )


def _job(arguments: Namespace, parameters: Parameters) -> Job:
    from retro_ops.models import name_digest

    wanted = ("chunks_out", "seq2chunk_index_out", "chunk2seq_index_out")
    missing = [f"--{name.replace('_', '-')}" for name in wanted if not getattr(arguments, name)]
    if missing:
        raise BadInputError(f"{', '.join(missing)} missing", "name the three output files, or give --plan and --shard")
    inputs = arguments.inputs or [corpus.STDIN]
    stdin = corpus.STDIN in inputs
    sources = tuple(inputs) if stdin else tuple(uri for pattern in inputs for uri in corpus.find(pattern))
    # Standard input cannot be looked at beforehand, so such a run never counts as done.
    content = uuid.uuid4().hex if stdin else [store.at(uri).fingerprint(uri) for uri in sources]
    settings = {name: getattr(parameters, name) for name in PARAMETERS if name != "memory_budget"}
    settings["tokenizer"] = name_digest(parameters.tokenizer)
    line_bytes = layout.line_limit(parameters.memory_budget)
    # The names too: another name for an output is another output.
    outputs = [arguments.chunks_out, arguments.seq2chunk_index_out, arguments.chunk2seq_index_out]
    outputs += [arguments.documents_out, arguments.quarantine_out]
    return Job(
        sources,
        chunks=arguments.chunks_out,
        seq2chunk=arguments.seq2chunk_index_out,
        chunk2seq=arguments.chunk2seq_index_out,
        documents=arguments.documents_out or layout.documents_uri(arguments.chunks_out),
        quarantine=arguments.quarantine_out or layout.quarantine_uri(arguments.chunks_out),
        report=layout.beside(arguments.chunks_out, layout.REPORT),
        digest=layout.digest(layout.CODE_VERSIONS[STAGE], content, settings, outputs, line_bytes),
        line_bytes=line_bytes,
    )


def _work(job: Job, parameters: Parameters, unfinished: Unfinished) -> report.Outcome:
    from retro_ops.core.chunking import token_dtype
    from retro_ops.models import Tokenizer

    tokenizer = Tokenizer(parameters.tokenizer, parameters.pad_id)
    dtype = token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    size, limit = parameters.chunk_size, parameters.max_chunks
    full = False
    _check_unchanged(job, unfinished)
    store.at(job.quarantine).delete(job.quarantine)
    with _outputs(job, dtype, size) as out:
        for part in unfinished.parts():
            out.append(part)
        progress = Progress(STAGE, None, "documents", out.documents)
        records = corpus.records(job.sources, job.line_bytes, first=unfinished.end)
        for batch in _batches(records, parameters.on_bad_record):
            ids = tokenizer.encode([document.text for document in batch.documents])
            fits = len(ids) if limit is None else _fitting(ids, size, limit - out.chunks)
            full = fits < len(ids)
            part = _part(batch, ids[:fits], size, tokenizer.pad_id, dtype, out)
            out.append(part)
            progress.advance(fits)
            if full:
                say(
                    f"{STAGE}: stopped before the first document that passes --max-chunks {limit:,}", event="max_chunks"
                )
                break
            unfinished.add(part, out.documents + out.bad_records)
            unfinished.commit_when_due()
        progress.close()
        _check_unchanged(job, unfinished)
        out.check_share(parameters.max_bad_share)
        written = out.close()
    return report.Outcome(
        counts={"documents": out.documents, "chunks": out.chunks, "bad_records": out.bad_records},
        outputs=written,
        identity={"tokenizer": tokenizer.digest, "chunk_size": size, "pad_id": tokenizer.pad_id},
        details={
            "tokenizer": parameters.tokenizer,
            "token_dtype": str(dtype),
            "stopped_at_max_chunks": full,
            **unfinished.details(),
        },
    )


def _check_unchanged(job: Job, unfinished: Unfinished) -> None:
    """What is read must be what was planned, before and after: the output would go by the name of another content."""
    if changed := corpus.changed_source(job.planned):
        unfinished.delete()
        raise BadInputError(
            f"{changed} since the run was planned",
            "start another run, or clear the task `plan` with all after it: it takes the corpus as it is now",
        )


@dataclass(frozen=True)
class _Batch:
    """Documents that are tokenised together, and the bad records among them."""

    documents: list[corpus.Document]
    bad: list[corpus.BadRecord]


def _batches(records: Iterator[corpus.Document | corpus.BadRecord], on_bad_record: str) -> Iterator[_Batch]:
    batch, size = _Batch([], []), 0
    for record in records:
        if isinstance(record, corpus.Document):
            batch.documents.append(record)
            size += record.bytes
        elif on_bad_record == "fail":
            raise BadInputError(
                f"{record.source}, line {record.line}: {record.reason}",
                "mend the record, or set bad records aside with --on-bad-record quarantine",
            )
        else:
            batch.bad.append(replace(record, content=record.content[:200]))
        if size >= BATCH_BYTES or BATCH_DOCUMENTS in (len(batch.documents), len(batch.bad)):
            yield batch
            batch, size = _Batch([], []), 0
    if batch.documents or batch.bad:
        yield batch


def _fitting(ids: list[list[int]], chunk_size: int, most_chunks: int) -> int:
    """How many of the documents ``ids``, from the first on, have no more than ``most_chunks`` chunks together."""
    from retro_ops.core.chunking import chunk_counts

    return int((chunk_counts([len(i) for i in ids], chunk_size).cumsum() <= most_chunks).sum())


def _part(
    batch: _Batch, ids: list[list[int]], size: int, pad_id: int, dtype: "np.dtype[Any]", before: "_Outputs"
) -> Part:
    """What the first documents of ``batch``, those of ``ids``, add to each output; lines as their bytes."""
    from retro_ops.core.chunking import chunk_documents

    made = chunk_documents(ids, size, pad_id, dtype, first_document=before.documents, first_chunk=before.chunks)
    sidecar = (
        {"source": document.source, "line": document.line, "record": document.extra}
        for document in batch.documents[: len(ids)]
    )
    return {
        "chunks": made.chunks,
        "seq2chunk": made.seq2chunk,
        "chunk2seq": made.chunk2seq,
        "document_ids": made.document_ids,
        "documents": _as_array(corpus.json_lines(sidecar)),
        "quarantine": _as_array(corpus.json_lines(asdict(record) for record in batch.bad)),
    }


def _as_array(data: bytes) -> "NDArray[np.uint8]":
    import numpy as np

    return np.frombuffer(data, np.uint8)


@contextlib.contextmanager
def _outputs(job: Job, dtype: "np.dtype[Any]", chunk_size: int) -> Iterator["_Outputs"]:
    with contextlib.ExitStack() as stack:
        yield _Outputs(stack, job, dtype, chunk_size)


class _Outputs:
    """The files of a shard, filled part by part. The one for bad records is made for the first of them."""

    def __init__(self, stack: contextlib.ExitStack, job: Job, dtype: "np.dtype[Any]", chunk_size: int) -> None:
        from retro_ops.arrays import NpyWriter

        self.documents = self.chunks = self.bad_records = 0
        self._stack = stack
        self._arrays = {
            "chunks": stack.enter_context(NpyWriter(job.chunks, dtype, (chunk_size,))),
            "seq2chunk": stack.enter_context(NpyWriter(job.seq2chunk, "int64")),
            "chunk2seq": stack.enter_context(NpyWriter(job.chunk2seq, "int32")),
            "document_ids": stack.enter_context(NpyWriter(layout.document_ids_uri(job.chunks), "uint64")),
        }
        self._sidecar = self._lines_at(job.documents)
        self._quarantine: corpus.JsonLinesWriter | None = None
        self._quarantine_uri = job.quarantine

    def append(self, part: Part) -> None:
        for name, writer in self._arrays.items():
            writer.append(part[name])
        self._sidecar.append(part["documents"].tobytes())
        bad = part["quarantine"].tobytes()
        if bad:
            self._quarantine = self._quarantine or self._lines_at(self._quarantine_uri)
            self._quarantine.append(bad)
        self.documents += len(part["seq2chunk"])
        self.chunks += len(part["chunks"])
        self.bad_records += bad.count(b"\n")

    def check_share(self, limit: float) -> None:
        records = self.documents + self.bad_records
        share = self.bad_records / max(1, records)
        if share > limit:
            self._close_quarantine()
            raise BadInputError(
                f"{self.bad_records:,} of {records:,} records ({share:.1%}) are bad, more than the limit of "
                f"{limit:.1%}; file, line and reason of each: {self._quarantine_uri}",
                "mend the file, or raise --max-bad-share",
            )

    def close(self) -> list[store.Written]:
        return [*(a.close() for a in self._arrays.values()), self._sidecar.close(), *self._close_quarantine()]

    def _close_quarantine(self) -> list[store.Written]:
        return [self._quarantine.close()] if self._quarantine else []

    def _lines_at(self, uri: str) -> corpus.JsonLinesWriter:
        return corpus.JsonLinesWriter(self._stack.enter_context(store.create(uri)), uri)
