"""Estimates the chunks and the work of a plan from a sample of the corpus."""

import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro_ops.corpus import source_lines
from retro_ops.errors import BadInputError
from retro_ops.plan import digests, estimate, limits, paths, traffic
from retro_ops.plan.plan import SPLITS, Plan, Split
from retro_ops.progress import say
from retro_ops.sizes import counted, in_words, parse_bytes, time_in_words
from retro_ops.storage import store

if TYPE_CHECKING:
    from retro_ops.embedding.model import Model
    from retro_ops.tokens.tokenizer import Tokenizer


SAMPLED_SHARDS = 8

SAMPLED_BYTES = 2**17
"""Bytes of lines read from each sampled shard."""


def write_estimate(plan: Plan, tokenizer: "Tokenizer", model: "Model", output: str, workers: int) -> None:
    """Write the estimate next to the plan at ``output`` and log it as a table.

    BadInputError if the run exceeds a limit of any stage, so that it does not fail after days.
    """
    work, index = _expected_work(plan, tokenizer, model)
    expected, moved = estimate.estimate(work, index), traffic.traffic(work, index, workers)
    took = traffic.hours(work, expected.seconds["cuda"], moved, workers)
    uri = paths.estimate_uri(output)
    document = {
        **expected.as_json(),
        "traffic": {stage: of.as_json() for stage, of in moved.items()},
        "hours": {"workers": workers, **took},
    }
    store.write(uri, (json.dumps(document, indent=1) + "\n").encode())
    say(f"plan: expects about {work.total:,} chunks; estimate if everything is built ({uri}):")
    for line in traffic.table(expected, moved, took):
        say(f"  {line}")
    if store.buffers(plan.root):
        size = in_words(limits.largest_object(work, index))
        say(
            f"plan: each object is written to TMPDIR before it is sent, so a task needs about {size} there",
            event="tmpdir",
        )
    by = "a GPU" if workers == 1 else f"{workers:,} workers that have a GPU each"
    say(f"plan: {time_in_words(sum(took.values()) * 3600)} with {by}")
    if plan.parameters.embed_input == "text":
        cores = counted(estimate.cores_per_gpu(work), "core")
        say(f"plan: to embed text, a GPU needs about {cores}; with fewer it waits")
    for stage, power in traffic.faster_than_linear(work, index, workers).items():
        say(f"plan: the bytes that {stage} reads grow faster than the corpus: as its size to the power of {power:.1f}")
    _check_limits(plan, work, index)


def _check_limits(plan: Plan, work: estimate.Work, index: estimate.Index) -> None:
    beyond = limits.exceeded(work, index, finds_duplicates=plan.parameters.duplicates != "keep")
    for of in beyond:
        if of.certain:
            raise BadInputError(of.problem, of.remedy)
        say(f"plan: {of.problem}. What to do: {of.remedy}", logging.WARNING, event="limit")


@dataclass(frozen=True)
class _Expected:
    """Estimated counts of a split."""

    chunks: int
    largest: int
    """Chunks of the largest shard."""
    documents: int


def _expected_counts(plan: Plan, split: Split, tokenizer: "Tokenizer") -> _Expected:
    """Estimate the counts of ``split`` by tokenising the beginning of up to SAMPLED_SHARDS shards."""
    from retro_ops.tokens.chunking import chunk_counts

    p, shards = plan.parameters, [shard for shard in plan.shards if shard.split == split]
    chunks, documents = [], []
    for shard in shards[:: max(1, -(-len(shards) // SAMPLED_SHARDS))]:
        source = shard.sources[0]
        try:
            limit = digests.line_limit(p)
            texts, share = source_lines.sample(source.uri, limit, p.text_field, SAMPLED_BYTES)
        except BadInputError as error:  # The task of this shard will fail; the others can go on.
            say(f"plan: {error}", logging.WARNING)
            continue
        if not share:
            said = f"plan: {source.uri} has no document in its first bytes, so the estimate leaves it out"
            say(said, logging.WARNING, event="not_sampled")
            continue
        lengths = [len(ids) for ids in tokenizer.encode([document.text for document in texts])]
        chunks.append((source.bytes, share, int(chunk_counts(lengths, p.chunk_size).sum())))
        documents.append((source.bytes, share, len(texts)))
    sizes = [sum(source.bytes for source in shard.sources) for shard in shards]
    per_shard = [min(estimate.scaled(chunks, size), p.max_chunks or sys.maxsize) for size in sizes]
    return _Expected(sum(per_shard), max(per_shard), estimate.scaled(documents, sum(sizes)))


def _expected_work(plan: Plan, tokenizer: "Tokenizer", model: "Model") -> tuple[estimate.Work, estimate.Index]:
    from retro_ops.index import faiss_index, index_types, training
    from retro_ops.tokens.chunking import token_dtype

    p = plan.parameters
    used = {shard.split for shard in plan.shards}
    counts = {split: _expected_counts(plan, split, tokenizer) for split in SPLITS if split in used}
    work = estimate.Work(
        chunks={split: count.chunks for split, count in counts.items()},
        documents=sum(count.documents for count in counts.values()),
        shards=len(plan.shards),
        largest_shard=max(count.largest for count in counts.values()),
        chunk_size=p.chunk_size,
        chunk_operations=model.operations(p.chunk_size),
        model_bytes=model.bytes,
        token_bytes=token_dtype(plan.identity.vocabulary_size, p.token_dtype).itemsize,
        dimension=plan.identity.dimension,
        num_neighbours=p.num_neighbours + (p.keep_neighbours or 0),  # As stored.
        recall_sample=p.recall_sample,
        memory_budget=parse_bytes(p.memory_budget),
        corpus_bytes=sum(source.bytes for shard in plan.shards for source in shard.sources),
    )
    vectors = counts["train"].chunks
    index_type = p.index_type
    if index_type == index_types.AUTO:
        memory = parse_bytes(p.index_memory) if p.index_memory else None
        try:
            index_type, _ = index_types.choose_index_type(max(1, vectors), plan.identity.dimension, memory)
        except BadInputError as error:  # The count is only an estimate; training decides.
            say(f"plan: {error}", logging.WARNING)
            index_type, _ = index_types.choose_index_type(max(1, vectors), plan.identity.dimension)
    index = index_types.make_index(index_type, plan.identity.dimension)
    sampled = min(vectors, p.max_training_vectors or training.training_vectors(index))
    shape = estimate.Index(faiss_index.list_count(index), faiss_index.bytes_per_vector(index), sampled)
    return work, shape
