"""Estimates the chunks and the work of a plan from a sample of the corpus."""

import json
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retro_ops.corpus import json_lines
from retro_ops.errors import BadInputError
from retro_ops.plan import digests, estimate, paths
from retro_ops.plan.plan import SPLITS, Plan, Split
from retro_ops.progress import say
from retro_ops.sizes import parse_bytes
from retro_ops.storage import store

if TYPE_CHECKING:
    from retro_ops.embedding.model import Model
    from retro_ops.tokens.tokenizer import Tokenizer


SAMPLED_SHARDS = 8

SAMPLED_BYTES = 2**17
"""Bytes of lines read from each sampled shard."""


def write_estimate(plan: Plan, tokenizer: "Tokenizer", model: "Model", output: str) -> None:
    """Write the estimate next to the plan at ``output`` and log it as a table."""
    expected = _expected(plan, tokenizer, model)
    uri = paths.estimate_uri(output)
    store.write(uri, (json.dumps(expected.as_json(), indent=1) + "\n").encode())
    say(f"plan: expects about {expected.chunks['all']:,} chunks; estimate if everything is built ({uri}):")
    for line in estimate.table(expected):
        say(f"  {line}")


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
            texts, share = json_lines.sample(source.uri, digests.line_limit(p.memory_budget), SAMPLED_BYTES)
        except BadInputError as error:  # The task of this shard will fail; the others can go on.
            say(f"plan: {error}", logging.WARNING)
            continue
        lengths = [len(ids) for ids in tokenizer.encode([document.text for document in texts])]
        chunks.append((source.bytes, share, int(chunk_counts(lengths, p.chunk_size).sum())))
        documents.append((source.bytes, share, len(texts)))
    sizes = [sum(source.bytes for source in shard.sources) for shard in shards]
    per_shard = [min(estimate.scaled(chunks, size), p.max_chunks or sys.maxsize) for size in sizes]
    return _Expected(sum(per_shard), max(per_shard), estimate.scaled(documents, sum(sizes)))


def _expected(plan: Plan, tokenizer: "Tokenizer", model: "Model") -> estimate.Estimate:
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
        num_neighbours=p.num_neighbours,
        recall_sample=p.recall_sample,
        memory_budget=parse_bytes(p.memory_budget),
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
    return estimate.estimate(work, shape)
