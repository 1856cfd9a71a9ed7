"""Corpus -> plan.json: which shards, from which files, made with which tokenizer and model."""

import json
import logging
import re
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from retro_ops import corpus, layout, store
from retro_ops.core import estimate
from retro_ops.errors import BadInputError
from retro_ops.plans import write_plan
from retro_ops.progress import say
from retro_ops.specs import Identity, Parameters, Plan, Shard, Source, Split, check_name, parse_bytes

if TYPE_CHECKING:
    from retro_ops.models import Tokenizer

HELP = "read the corpus, name its shards, check the parameters, and write the plan of a run"
PARAMETERS = tuple(field.name for field in fields(Parameters))

SAMPLED_SHARDS = 8
SAMPLED_BYTES = 2**17
"""Of each sampled shard of a split, to expect the number of chunks."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix that holds all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--corpus", required=True, help="training files: a file, a folder or a pattern")
    parser.add_argument("--validation-corpus", help="validation files, likewise")
    parser.add_argument("--output", required=True, help="plan to write")


def run(arguments: Namespace, parameters: Parameters) -> None:
    from retro_ops.models import Tokenizer

    check_name("dataset", arguments.dataset)
    shards = _shards(arguments.corpus, "train")
    if arguments.validation_corpus:
        shards += _shards(arguments.validation_corpus, "val")
    _check_names(shards)
    parse_bytes(parameters.memory_budget)
    if parameters.index_memory:
        parse_bytes(parameters.index_memory)
    tokenizer = Tokenizer(parameters.tokenizer, parameters.pad_id)
    identity = _identity(parameters, tokenizer)
    plan = Plan(arguments.dataset, arguments.root.rstrip("/"), parameters, identity, tuple(shards))
    expected = _expected(plan, tokenizer)
    estimate_uri = layout.estimate_uri(arguments.output)
    store.write(estimate_uri, (json.dumps(expected.as_json(), indent=1) + "\n").encode())
    write_plan(plan, arguments.output)
    size = sum(source.bytes for shard in shards for source in shard.sources)
    say(
        f"plan: {len(shards):,} shards, {size / 1e6:,.1f} MB of {arguments.corpus}: {arguments.output}",
        event="planned",
        shards=len(shards),
        bytes=size,
    )
    say(f"plan: about {expected.chunks['all']:,} chunks to expect, if nothing is done yet ({estimate_uri}):")
    for line in estimate.table(expected):
        say(f"  {line}")


@dataclass(frozen=True)
class _Expected:
    """Counts of a split; ``largest``: chunks of its largest shard."""

    chunks: int
    largest: int
    documents: int


def _expected_counts(plan: Plan, split: Split, tokenizer: "Tokenizer") -> _Expected:
    """From the beginnings of some shards, tokenised."""
    from retro_ops.core.chunking import chunk_counts

    p, shards = plan.parameters, plan.queried(split)
    chunks, documents = [], []
    for shard in shards[:: max(1, -(-len(shards) // SAMPLED_SHARDS))]:
        source = shard.sources[0]
        try:
            texts, share = corpus.sample(source.uri, layout.line_limit(p.memory_budget), SAMPLED_BYTES)
        except BadInputError as error:  # Its own task will fail; the other shards have theirs to do.
            say(f"plan: {error}", logging.WARNING)
            continue
        lengths = [len(ids) for ids in tokenizer.encode([document.text for document in texts])]
        chunks.append((source.bytes, share, int(chunk_counts(lengths, p.chunk_size).sum())))
        documents.append((source.bytes, share, len(texts)))
    sizes = [sum(source.bytes for source in shard.sources) for shard in shards]
    of_shards = [min(estimate.scaled(chunks, size), p.max_chunks or sys.maxsize) for size in sizes]
    return _Expected(sum(of_shards), max(of_shards), estimate.scaled(documents, sum(sizes)))


def _expected(plan: Plan, tokenizer: "Tokenizer") -> estimate.Estimate:
    from retro_ops.core import faiss_index
    from retro_ops.core.chunking import token_dtype

    p = plan.parameters
    counts = {split: _expected_counts(plan, split, tokenizer) for split in plan.splits()}
    work = estimate.Work(
        chunks={split: of.chunks for split, of in counts.items()},
        documents=sum(of.documents for of in counts.values()),
        shards=len(plan.shards),
        largest_shard=max(of.largest for of in counts.values()),
        chunk_size=p.chunk_size,
        token_bytes=token_dtype(plan.identity.vocabulary_size, p.token_dtype).itemsize,
        dimension=plan.identity.dimension,
        num_neighbours=p.num_neighbours,
        recall_sample=p.recall_sample,
        memory_budget=parse_bytes(p.memory_budget),
    )
    vectors = counts["train"].chunks
    index_type = p.index_type
    if index_type == faiss_index.AUTO:
        memory = parse_bytes(p.index_memory) if p.index_memory else None
        try:
            index_type, _ = faiss_index.choose_index_type(max(1, vectors), plan.identity.dimension, memory)
        except BadInputError as error:  # The number is expected, not counted: training decides.
            say(f"plan: {error}", logging.WARNING)
            index_type, _ = faiss_index.choose_index_type(max(1, vectors), plan.identity.dimension)
    index = faiss_index.make_index(index_type, plan.identity.dimension)
    sampled = min(vectors, p.max_training_vectors or faiss_index.training_vectors(index))
    shape = estimate.Index(faiss_index.list_count(index), faiss_index.bytes_per_vector(index), sampled)
    return estimate.estimate(work, shape)


def _shards(pattern: str, split: Split) -> list[Shard]:
    shards = []
    for uri in corpus.find(pattern):
        source = Source(uri, store.at(uri).size(uri), store.at(uri).fingerprint(uri))
        shards.append(Shard(check_name("shard", _shard_name(uri)), split, (source,)))
    return sorted(shards, key=lambda shard: shard.name)


def _shard_name(uri: str) -> str:
    """``s3://bucket/corpus/00_wikipedia_en.jsonl.gz`` -> ``00_wikipedia_en``."""
    return re.sub(r"\.jsonl(\.gz|\.zst)?$", "", uri.rpartition("/")[2])


def _check_names(shards: list[Shard]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        uri = shard.sources[0].uri
        if shard.name in seen:
            raise BadInputError(
                f"{seen[shard.name]} and {uri} would both be shard {shard.name!r}",
                "a shard is named by its file: rename one (validation files for instance val_…)",
            )
        seen[shard.name] = uri


def _identity(parameters: Parameters, tokenizer: "Tokenizer") -> Identity:
    """Load the model once, too, so that a run with a wrong name or type fails before any work."""
    from retro_ops.core import faiss_index
    from retro_ops.core.chunking import token_dtype
    from retro_ops.device import Device
    from retro_ops.models import Embedder

    token_dtype(tokenizer.vocabulary_size, parameters.token_dtype)
    embedder = Embedder(parameters.model, Device("cpu", "only looked at"))
    if parameters.index_type != faiss_index.AUTO:  # Chosen once the vectors are counted, and always fit.
        index = faiss_index.make_index(parameters.index_type, embedder.dimension)
        faiss_index.check_mergeable(index, parameters.index_type)
    return Identity(
        tokenizer_digest=tokenizer.digest,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        model_digest=embedder.digest,
        dimension=embedder.dimension,
    )
