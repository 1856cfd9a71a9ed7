"""Digests: which inputs, parameters and code versions determine the output of each stage.

They are the only place for it: paths follow from them, and a refresh compares them to find the outputs to reuse.
A new parameter needs no line here: ``set_later`` adds it to the digest of the first stage that it changes.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from retro_ops.errors import BadInputError
from retro_ops.plan import views
from retro_ops.plan.parameters import PARAMETERS, TEXT_FIELD, Parameters, set_later
from retro_ops.plan.plan import BaseShard, Plan, Shard, Source, Split
from retro_ops.plan.stage_graph import CODE_VERSIONS as CODE_VERSIONS
from retro_ops.plan.stage_graph import STAGES, runs_on, stages
from retro_ops.sizes import parse_bytes

P = ParamSpec("P")


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
"""``json.dumps`` would make an encoder for each of the thousands of digests of a large plan."""


def digest(*parts: Any) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of ``parts``."""
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:16]


BUDGET_SHARE_OF_A_LINE = 256
"""Tokenising a document of 1/256 of the budget takes about half of the budget."""


def code_version(plan: Plan, stage: str) -> int:
    """Code version of ``stage`` when ``plan`` was made, so that older versions are found by newer code."""
    return (plan.code_versions or CODE_VERSIONS).get(stage, CODE_VERSIONS[stage])


def other_code(plan: Plan) -> list[str]:
    """Stages that a run of ``plan`` still needs and whose output would have other bytes than when it was made."""
    needed = [stage for stage in stages(plan) if not (plan.deduplicated and stage == "sign-documents")]
    return [stage for stage in needed if code_version(plan, stage) != CODE_VERSIONS[stage]]


def line_limit(chosen: Parameters) -> int:
    """Largest length of a line in bytes; longer lines are bad records. A small budget therefore changes the content, so
    the limit is part of the digest; by default it is the same for all budgets of 2 GiB and more."""
    return min(parse_bytes(chosen.longest_line), parse_bytes(chosen.memory_budget) // BUDGET_SHARE_OF_A_LINE)


def check_longest_line(chosen: Parameters) -> None:
    """Raise BadInputError if the memory budget does not allow the longest line that was asked for."""
    allowed = line_limit(chosen)
    if chosen.longest_line != Parameters().longest_line and allowed < (wanted := parse_bytes(chosen.longest_line)):
        needed = -(-wanted * BUDGET_SHARE_OF_A_LINE // 2**20)
        raise BadInputError(
            f"longest_line is {chosen.longest_line}, but memory_budget {chosen.memory_budget} allows {allowed:,} bytes",
            f"raise {PARAMETERS['memory_budget'].where} to {needed}MiB",
        )


def _output(digest_of: Callable[Concatenate[Plan, P], str]) -> Callable[Concatenate[Plan, P], str]:
    """Decorator of a digest: computed once for each plan, and replaced if its output is known to be damaged.

    ``digest_of`` takes the plan and at most a shard or a split.
    """

    @functools.wraps(digest_of)
    def digest_of_output(plan: Plan, /, *arguments: P.args, **none: P.kwargs) -> str:
        of = arguments[0] if arguments else ""
        key = (digest_of.__name__, of.name if isinstance(of, Shard) else str(of))
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
        line_limit(plan.parameters),
        *text_field(plan.parameters.text_field),
        *benchmarks(plan.benchmarks_of(shard)),
    )


def text_field(of: str) -> list[str]:
    """Entry of a digest of signatures for ``text_field``; none for the default, which is older than the parameter."""
    return [] if of == TEXT_FIELD else [of]


def benchmarks(files: tuple[Source, ...]) -> list[list[str]]:
    """Entry of a digest for the benchmark texts that documents are compared with; none where they are not."""
    return [["benchmarks", *(file.fingerprint for file in files)]] if files else []


@_output
def tokenize_digest(plan: Plan, shard: Shard) -> str:
    p = plan.parameters
    return digest(
        code_version(plan, "tokenize-and-chunk"),
        [source.fingerprint for source in shard.sources],
        plan.identity.tokenizer_digest,
        [plan.identity.pad_id, p.chunk_size, p.max_chunks, p.token_dtype],
        [p.on_bad_record, p.max_bad_share, line_limit(p)],
        *cut_shard(p.max_chunks),
        *([["without", shard.without.fingerprint]] if shard.without else []),
        *([["contaminated", shard.contaminated.fingerprint]] if shard.contaminated else []),
        *set_later(p, "tokenize-and-chunk"),
    )


def cut_shard(max_chunks: int | None) -> list[str]:
    """Entry of a digest for ``max_chunks``: since version 3 the bad records of a cut shard end at the cut."""
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
    """Entry of a digest for ``embed_input``; none for the default, which is older than the parameter."""
    return [] if of == PARAMETERS["embed_input"].default else [of]


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
    """Digest of the content of an index; no folder is named after it."""
    return digest(
        code_version(plan, "merge-indexes"),
        train_digest(plan),
        [embed_digest(plan, shard) for shard in plan.indexed(split)],
    )


@_output
def merge_digest(plan: Plan) -> str:
    # Includes the partial indexes: they follow from the same inputs, unless one was found damaged.
    return digest(
        [index_digest(plan, split) for split in plan.splits()],
        [partial_index_digest(plan, shard) for shard in plan.shards if shard.indexed],
    )


@_output
def tuning_digest(plan: Plan) -> str:
    if plan.base and plan.base.tuning:
        return plan.base.tuning
    p = views.searched(plan.parameters)
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
    base = base_shard(plan, shard)
    start = base.neighbours if base else None
    if start and not differs_from_base(plan, shard.split):
        return start
    p = plan.parameters
    return digest(
        code_version(plan, "retrieve-neighbours"),
        # With the name, since the neighbours of a shard depend on its place in the index.
        [shard.name, embed_digest(plan, shard)],
        index_digest(plan, shard.split),
        [p.num_neighbours, p.profile, p.nprobe, p.retrieval_margin],
        # nprobe and candidates are measured over all shards.
        tuning_digest(plan),
        *views.in_digest(p),
        *([start] if start else []),
        # Its place in the index includes whether it has one.
        *([] if shard.indexed else ["not indexed"]),
    )


CELLS_VERSION = 1
"""Raised when the cells of a grid would hold other bytes."""


@_output
def cells_digest(plan: Plan, split: Split) -> str:
    """Digest of the cells of a grid; their shape is in their names."""
    return digest(
        CELLS_VERSION,
        [neighbours_digest(plan, shard) for shard in plan.queried(split)],
        [partial_index_digest(plan, shard) for shard in plan.indexed(split)],
    )


SAMPLES_VERSION = 1
"""Raised when `search-samples` would write other bytes."""


@_output
def samples_digest(plan: Plan) -> str:
    """Digest of the true neighbours of the samples of `tune-search` and `describe`."""
    p = plan.parameters
    return digest(
        SAMPLES_VERSION,
        [[embed_digest(plan, shard) for shard in plan.indexed(split)] for split in plan.splits()],
        [[shard.name, embed_digest(plan, shard)] for shard in plan.shards if shard.queried],
        [p.num_neighbours, p.profile, p.target_recall, p.recall_sample, p.seed],
        [p.max_overlap, p.max_shared_run, p.max_shared_ngrams],
        plan.base.tuning if plan.base else None,
        *views.in_digest(p),
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
        # A version names the benchmarks that it was compared with, even if no document was dropped.
        *(
            [["contaminated", plan.parameters.contaminated], *benchmarks(plan.benchmark_files)]
            if plan.benchmark_files
            else []
        ),
    )


def base_shard(plan: Plan, shard: Shard) -> BaseShard | None:
    """The shard in the base version, if its split and embeddings are the same."""
    base = plan.base.by_name.get(shard.name) if plan.base else None
    same = base and (base.split, base.embeddings) == (shard.split, embed_digest(plan, shard))
    return base if same else None


def is_in_base_index(plan: Plan, shard: Shard) -> bool:
    """Whether the index of the base version holds the same chunks for ``shard``."""
    base = base_shard(plan, shard)
    return base is not None and base.indexed


def differs_from_base(plan: Plan, split: Split) -> bool:
    """Whether neighbours of ``split`` are others than in the base version: of another view, or from another index."""
    assert plan.base
    return plan.base.other_view or not index_is_the_same(plan, split)


def index_is_the_same(plan: Plan, split: Split) -> bool:
    """Whether queries of ``split`` search the same chunks as in the base version, with the same ids."""
    assert plan.base
    key = ("index_is_the_same", split)
    if key not in plan.memo:
        base = [(shard.name, shard.embeddings) for shard in plan.base.indexed(split)]
        current = [(shard.name, embed_digest(plan, shard)) for shard in plan.indexed(split)]
        plan.memo[key] = "yes" if base == current else ""
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
    """Digest in the name of the output folder of ``stage``. Stages that map over shards need ``shard``."""
    if stage in _OF_A_SHARD:
        if shard is None:
            raise BadInputError(f"{stage} needs a shard", "name it with --shard")
        of_plan = plan.shard(shard)
        if not runs_on(stage, of_plan):
            raise BadInputError(
                f"{stage} does not run on shard {shard!r}, which is not {'queried' if of_plan.indexed else 'indexed'}",
                "run it on other shards, or make a new plan with another choice of shards",
            )
        return _OF_A_SHARD[stage](plan, of_plan)
    if stage in _OF_THE_INDEX:
        return _OF_THE_INDEX[stage](plan)
    if stage in STAGES and STAGES[stage].folder == "versions":
        return version_digest(plan)
    raise BadInputError(f"unknown stage {stage!r}")
