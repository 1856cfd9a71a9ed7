"""Documents in JSON lines -> chunks.npy, seq2chunk.npy, chunk2seq.npy and the documents sidecar."""

import contextlib
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from retro_ops import corpus, layout, report, store
from retro_ops.errors import BadInputError
from retro_ops.plans import read_plan
from retro_ops.progress import Progress, say
from retro_ops.specs import Parameters

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
"""Bounds a batch of short or empty documents, whose objects cost far more than their text."""


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
    report.run_once(STAGE, job.report, job.digest, chosen, job.sources, lambda: _work(job, parameters))


def _planned_job(plan_uri: str, shard: str) -> Job:
    plan = read_plan(plan_uri)
    files = layout.chunks_files(plan, shard)
    return Job(
        tuple(source.uri for source in plan.shard(shard).sources),
        **files,
        documents=layout.documents_uri(files["chunks"]),
        quarantine=layout.quarantine_uri(files["chunks"]),
        report=layout.report_uri(plan, STAGE, shard),
        digest=layout.tokenize_digest(plan, plan.shard(shard)),
        line_bytes=layout.line_limit(plan.parameters.memory_budget),
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


def _work(job: Job, parameters: Parameters) -> report.Outcome:
    from retro_ops.arrays import NpyWriter
    from retro_ops.core.chunking import chunk_counts, chunk_documents, token_dtype
    from retro_ops.models import Tokenizer

    tokenizer = Tokenizer(parameters.tokenizer, parameters.pad_id)
    dtype = token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    size, limit = parameters.chunk_size, parameters.max_chunks
    documents = chunks = 0
    full = False
    progress = Progress(STAGE, None, "documents")
    store.at(job.quarantine).delete(job.quarantine)
    with (
        _Quarantine(job.quarantine, parameters) as quarantine,
        NpyWriter(job.chunks, dtype, (size,)) as chunks_out,
        NpyWriter(job.seq2chunk, "int64") as seq2chunk_out,
        NpyWriter(job.chunk2seq, "int32") as chunk2seq_out,
        NpyWriter(layout.document_ids_uri(job.chunks), "uint64") as document_ids_out,
        store.create(job.documents) as documents_writer,
    ):
        documents_out = corpus.JsonLinesWriter(documents_writer, job.documents)
        good = quarantine.pass_good(corpus.records(job.sources, job.line_bytes))
        for batch in _batches(good):
            ids = tokenizer.encode([document.text for document in batch])
            if limit is not None:
                fits = int((chunks + chunk_counts([len(i) for i in ids], size).cumsum() <= limit).sum())
                full = fits < len(batch)
                batch, ids = batch[:fits], ids[:fits]
            part = chunk_documents(ids, size, tokenizer.pad_id, dtype, first_document=documents, first_chunk=chunks)
            chunks_out.append(part.chunks)
            seq2chunk_out.append(part.seq2chunk)
            chunk2seq_out.append(part.chunk2seq)
            document_ids_out.append(part.document_ids)
            for document in batch:
                documents_out.append({"source": document.source, "line": document.line, "record": document.extra})
            documents, chunks = documents + len(batch), chunks + len(part.chunks)
            progress.advance(len(batch))
            if full:
                say(
                    f"{STAGE}: stopped before the first document that passes --max-chunks {limit:,}", event="max_chunks"
                )
                break
        progress.close()
        quarantine.check_share(documents)
        arrays = (chunks_out, seq2chunk_out, chunk2seq_out, document_ids_out)
        outputs = [*(array.close() for array in arrays), documents_out.close()]
        outputs += quarantine.close_file()
    return report.Outcome(
        counts={"documents": documents, "chunks": chunks, "bad_records": quarantine.count},
        outputs=outputs,
        identity={"tokenizer": tokenizer.digest, "chunk_size": size, "pad_id": tokenizer.pad_id},
        details={"tokenizer": parameters.tokenizer, "token_dtype": str(dtype), "stopped_at_max_chunks": full},
    )


def _batches(documents: Iterator[corpus.Document]) -> Iterator[list[corpus.Document]]:
    batch: list[corpus.Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.bytes
        if size >= BATCH_BYTES or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Quarantine(contextlib.ExitStack):
    """Takes bad records aside into a file that is made for the first of them."""

    def __init__(self, uri: str, parameters: Parameters) -> None:
        super().__init__()
        self.count = 0
        self._uri = uri
        self._parameters = parameters
        self._out: corpus.JsonLinesWriter | None = None

    def pass_good(self, records: Iterator[corpus.Document | corpus.BadRecord]) -> Iterator[corpus.Document]:
        for record in records:
            if isinstance(record, corpus.Document):
                yield record
            else:
                self._add(record)

    def _add(self, record: corpus.BadRecord) -> None:
        if self._parameters.on_bad_record == "fail":
            raise BadInputError(
                f"{record.source}, line {record.line}: {record.reason}",
                "mend the record, or set bad records aside with --on-bad-record quarantine",
            )
        if self._out is None:
            self._out = corpus.JsonLinesWriter(self.enter_context(store.create(self._uri)), self._uri)
        entry: dict[str, Any] = asdict(record)
        entry["content"] = entry["content"][:200]
        self._out.append(entry)
        self.count += 1

    def check_share(self, documents: int) -> None:
        share = self.count / max(1, documents + self.count)
        if share > self._parameters.max_bad_share:
            self.close_file()
            raise BadInputError(
                f"{self.count:,} of {documents + self.count:,} records ({share:.1%}) are bad, more than the limit of "
                f"{self._parameters.max_bad_share:.1%}; file, line and reason of each: {self._uri}",
                "mend the file, or raise --max-bad-share",
            )

    def close_file(self) -> list[Any]:
        return [self._out.close()] if self._out else []
