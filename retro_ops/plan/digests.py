"""Digests: which inputs, parameters and code versions decide the output of each stage.

They are the only statement of that: paths follow from them, and a refresh compares them to find what it may use again.
A new parameter needs no line here: ``set_later`` adds it to the digest of the stage that it decides.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import Parameters, set_later
from retro_ops.plan.plan import BaseShard, Plan, Shard, Split
from retro_ops.plan.stage_graph import CODE_VERSIONS as CODE_VERSIONS
from retro_ops.plan.stage_graph import STAGES, runs_on
from retro_ops.sizes import parse_bytes

P = ParamSpec("P")


def digest(*parts: Any) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of ``parts``."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


MAX_LINE_BYTES = 8 * 2**20

BUDGET_SHARE_OF_A_LINE = 256
"""A document of 1/256 of the budget costs about half of it while it is tokenised."""


def code_version(plan: Plan, stage: str) -> int:
    """Of ``stage`` when ``plan`` was made, so that what was published is found after the code has moved on."""
    return (plan.code_versions or CODE_VERSIONS).get(stage, CODE_VERSIONS[stage])


def other_code(plan: Plan) -> list[str]:
    """Stages that would write other bytes now than when ``plan`` was made."""
    return [stage for stage in CODE_VERSIONS if code_version(plan, stage) != CODE_VERSIONS[stage]]


def line_limit(memory_budget: str) -> int:
    """Longest line that is a document; longer ones are bad records. So a small budget decides content,
    and the limit belongs to the digest; budgets of 2 GiB and more all give the same."""
    return min(MAX_LINE_BYTES, parse_bytes(memory_budget) // BUDGET_SHARE_OF_A_LINE)


def _output(digest_of: Callable[Concatenate[Plan, P], str]) -> Callable[Concatenate[Plan, P], str]:
    """Decorates a digest: it is computed once for a plan, and replaced while its output is known to be damaged."""

    @functools.wraps(digest_of)
    def digest_of_output(plan: Plan, /, *arguments: P.args, **none: P.kwargs) -> str:
        key = (digest_of.__name__, *(entry.name if isinstance(entry, Shard) else str(entry) for entry in arguments))
        if key not in plan.memo:
            result = digest_of(plan, *arguments, **none)
            while result in plan.is_condemned:
                result = digest("again", result)
            plan.memo[key] = result
        return plan.memo[key]

    return digest_of_output


@_output
def sign_digest(plan: Plan, shard: Shard) -> str:
    return digest(
        code_version(plan, "sign-documents"),
        [source.fingerprint for source in shard.sources],
        line_limit(plan.parameters.memory_budget),
    )


@_output
def tokenize_digest(plan: Plan, shard: Shard) -> str:
    p = plan.parameters
    return digest(
        code_version(plan, "tokenize-and-chunk"),
        [source.fingerprint for source in shard.sources],
        plan.identity.tokenizer_digest,
        [plan.identity.pad_id, p.chunk_size, p.max_chunks, p.token_dtype],
        [p.on_bad_record, p.max_bad_share, line_limit(p.memory_budget)],
        *cut_shard(p.max_chunks),
        *([["without", shard.without.fingerprint]] if shard.without else []),
        *set_later(p, "tokenize-and-chunk"),
    )


def cut_shard(max_chunks: int | None) -> list[str]:
    """What a limit adds to a digest: since version 3 the bad records of a shard that was cut end where it was cut."""
    return [] if max_chunks is None else ["bad records up to the cut"]


@_output
def embed_digest(plan: Plan, shard: Shard) -> str:
    return digest(
        code_version(plan, "embed-chunks"),
        tokenize_digest(plan, shard),
        plan.identity.model_digest,
        *embed_input(plan.parameters.embed_input),
        *set_later(plan.parameters, "embed-chunks"),
    )


def embed_input(of: str) -> list[str]:
    """What the parameter adds to a digest: nothing where it is the default, which came before it."""
    return [] if of == Parameters().embed_input else [of]


@_output
def train_digest(plan: Plan) -> str:
    if plan.base:
        return plan.base.trained
    p = plan.parameters
    return digest(
        code_version(plan, "train-faiss-index"),
        [embed_digest(plan, shard) for shard in plan.indexed("train")],
        [p.index_type, p.index_memory, p.index_too_small, p.max_training_vectors, p.seed],
        *set_later(p, "train-faiss-index"),
    )


@_output
def partial_index_digest(plan: Plan, shard: Shard) -> str:
    return digest(code_version(plan, "build-faiss-index"), train_digest(plan), embed_digest(plan, shard))


@_output
def index_digest(plan: Plan, split: Split) -> str:
    """Of what an index holds; it is no folder."""
    return digest(
        code_version(plan, "merge-indexes"),
        train_digest(plan),
        [embed_digest(plan, shard) for shard in plan.indexed(split)],
    )


@_output
def merge_digest(plan: Plan) -> str:
    # The partial indexes as well, which follow from the same, unless one was found damaged.
    return digest(
        [index_digest(plan, split) for split in plan.splits()],
        [partial_index_digest(plan, shard) for shard in plan.shards if shard.indexed],
    )


@_output
def tuning_digest(plan: Plan) -> str:
    if plan.base and plan.base.tuning:
        return plan.base.tuning
    p = plan.parameters
    return digest(
        code_version(plan, "tune-search"),
        [index_digest(plan, split) for split in plan.splits()],
        [embed_digest(plan, shard) for shard in plan.shards if shard.queried],
        [p.num_neighbours, p.profile, p.nprobe, p.retrieval_margin, p.target_recall, p.recall_sample, p.seed],
        [p.max_overlap, p.max_shared_run, p.max_shared_ngrams],
        *set_later(p, "tune-search"),
    )


@_output
def neighbours_digest(plan: Plan, shard: Shard) -> str:
    former = former_shard(plan, shard)
    start = former.neighbours if former else None
    if start and index_is_the_same(plan, shard.split):
        return start
    p = plan.parameters
    return digest(
        code_version(plan, "retrieve-neighbours"),
        # The name, since the neighbours of a shard depend on its place in the index.
        [shard.name, embed_digest(plan, shard)],
        index_digest(plan, shard.split),
        [p.num_neighbours, p.profile, p.nprobe, p.retrieval_margin],
        # How wide to search is measured over all shards.
        tuning_digest(plan),
        *([start] if start else []),
        # Which depends on whether it is there at all.
        *([] if shard.indexed else ["not indexed"]),
    )


@_output
def version_digest(plan: Plan) -> str:
    return digest(
        code_version(plan, "write-specs"),
        [
            [
                shard.name,
                partial_index_digest(plan, shard) if shard.indexed else embed_digest(plan, shard),
                neighbours_digest(plan, shard) if shard.queried else None,
            ]
            for shard in plan.shards
        ],
        [merge_digest(plan), tuning_digest(plan)],
    )


def former_shard(plan: Plan, shard: Shard) -> BaseShard | None:
    """The shard as the base version has it, if its embeddings are the same."""
    former = plan.base.by_name.get(shard.name) if plan.base else None
    same = former and (former.split, former.embeddings) == (shard.split, embed_digest(plan, shard))
    return former if same else None


def former_indexed(plan: Plan, shard: Shard) -> bool:
    """Whether the base version's index holds the same chunks under the name of ``shard``."""
    former = former_shard(plan, shard)
    return former is not None and former.indexed


def index_is_the_same(plan: Plan, split: Split) -> bool:
    """Whether the chunks that queries of ``split`` search are those of the base version, under the same ids."""
    assert plan.base
    key = ("index_is_the_same", split)
    if key not in plan.memo:
        former = [(shard.name, shard.embeddings) for shard in plan.base.indexed(split)]
        now = [(shard.name, embed_digest(plan, shard)) for shard in plan.indexed(split)]
        plan.memo[key] = "yes" if former == now else ""
    return bool(plan.memo[key])


_OF_A_SHARD: dict[str, Callable[[Plan, Shard], str]] = {
    "sign-documents": sign_digest,
    "tokenize-and-chunk": tokenize_digest,
    "embed-chunks": embed_digest,
    "build-faiss-index": partial_index_digest,
    "retrieve-neighbours": neighbours_digest,
}
_OF_THE_INDEX: dict[str, Callable[[Plan], str]] = {
    "train-faiss-index": train_digest,
    "tune-search": tuning_digest,
    "merge-indexes": merge_digest,
}


def output_digest(plan: Plan, stage: str, shard: str | None = None) -> str:
    """Digest in the name of the output folder of ``stage``; the stages that map over shards need ``shard``."""
    if stage in _OF_A_SHARD:
        if shard is None:
            raise BadInputError(f"{stage} runs on one shard", "name it with --shard")
        of_plan = plan.shard(shard)
        if not runs_on(stage, of_plan):
            raise BadInputError(
                f"{stage} does not run on shard {shard!r}, which is not {'queried' if of_plan.indexed else 'indexed'}",
                "run it on the others, or make a new plan with another choice of shards",
            )
        return _OF_A_SHARD[stage](plan, of_plan)
    if stage in _OF_THE_INDEX:
        return _OF_THE_INDEX[stage](plan)
    if stage in STAGES and STAGES[stage].folder == "versions":
        return version_digest(plan)
    raise BadInputError(f"unknown stage {stage!r}")
