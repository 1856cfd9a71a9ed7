"""Corpus -> plan.json: which shards, from which files, made with which tokenizer and model."""

import re
from argparse import ArgumentParser, Namespace
from dataclasses import fields

from retro_ops import corpus, store
from retro_ops.errors import BadInputError
from retro_ops.plans import write_plan
from retro_ops.progress import say
from retro_ops.specs import Identity, Parameters, Plan, Shard, Source, Split, check_name, parse_bytes

HELP = "read the corpus, name its shards, check the parameters, and write the plan of a run"
PARAMETERS = tuple(field.name for field in fields(Parameters))


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix that holds all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--corpus", required=True, help="training files: a file, a folder or a pattern")
    parser.add_argument("--validation-corpus", help="validation files, likewise")
    parser.add_argument("--output", required=True, help="plan to write")


def run(arguments: Namespace, parameters: Parameters) -> None:
    check_name("dataset", arguments.dataset)
    shards = _shards(arguments.corpus, "train")
    if arguments.validation_corpus:
        shards += _shards(arguments.validation_corpus, "val")
    _check_names(shards)
    identity = _identity(parameters)
    plan = Plan(arguments.dataset, arguments.root.rstrip("/"), parameters, identity, tuple(shards))
    write_plan(plan, arguments.output)
    size = sum(source.bytes for shard in shards for source in shard.sources)
    say(
        f"plan: {len(shards):,} shards, {size / 1e6:,.1f} MB of {arguments.corpus}: {arguments.output}",
        event="planned",
        shards=len(shards),
        bytes=size,
    )


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


def _identity(parameters: Parameters) -> Identity:
    """Load tokenizer and model once, so that a run with a wrong name or type fails before any work."""
    from retro_ops.core import faiss_index
    from retro_ops.core.chunking import token_dtype
    from retro_ops.device import Device
    from retro_ops.models import Embedder, Tokenizer

    parse_bytes(parameters.memory_budget)
    tokenizer = Tokenizer(parameters.tokenizer, parameters.pad_id)
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
