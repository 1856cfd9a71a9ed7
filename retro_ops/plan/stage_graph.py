"""The stages: their order, what each maps over, and the digest of its output."""

from typing import TYPE_CHECKING

from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Plan, Shard

if TYPE_CHECKING:
    pass
from collections.abc import Iterable, Iterator

from retro_ops.plan.digests import (
    CODE_VERSIONS,
    embed_digest,
    merge_digest,
    neighbours_digest,
    partial_index_digest,
    sign_digest,
    tokenize_digest,
    train_digest,
    tuning_digest,
    version_digest,
)

SHARD_STAGES = ("tokenize-and-chunk", "embed-chunks", "build-faiss-index", "retrieve-neighbours")

SHARD_DIGESTS = {
    "sign-documents": sign_digest,
    "tokenize-and-chunk": tokenize_digest,
    "embed-chunks": embed_digest,
    "build-faiss-index": partial_index_digest,
    "retrieve-neighbours": neighbours_digest,
}

INDEX_DIGESTS = {"train-faiss-index": train_digest, "tune-search": tuning_digest, "merge-indexes": merge_digest}

VERSION_STAGES = ("write-specs", "validate", "describe", "publish")


def output_digest(plan: Plan, stage: str, shard: str | None = None) -> str:
    """Digest in the name of the output folder of ``stage``; the stages that map over shards need ``shard``."""
    if stage in SHARD_DIGESTS:
        if shard is None:
            raise BadInputError(f"{stage} runs on one shard", "name it with --shard")
        found = plan.shard(shard)
        if not runs_on(stage, found):
            raise BadInputError(
                f"{stage} does not run on shard {shard!r}, which is not {'queried' if found.indexed else 'indexed'}",
                "run it on the others, or plan the run anew with another choice of shards",
            )
        return SHARD_DIGESTS[stage](plan, found)
    if stage in INDEX_DIGESTS:
        return INDEX_DIGESTS[stage](plan)
    if stage in VERSION_STAGES:
        return version_digest(plan)
    raise BadInputError(f"unknown stage {stage!r}")


def runs_on(stage: str, shard: Shard) -> bool:
    """Whether ``stage``, which maps over shards, has anything to do for ``shard``."""
    if stage == "build-faiss-index":
        return shard.indexed
    return shard.queried or stage != "retrieve-neighbours"


def shards_of(plan: Plan, stage: str) -> list[Shard]:
    """Those that ``stage`` maps over, in the plan's order."""
    return [shard for shard in plan.shards if runs_on(stage, shard)]


def tasks(plan: Plan, stages: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(stage, shard) of every task of ``stages``, in order; shard None where a stage runs once."""
    for stage in stages:
        for shard in [shard.name for shard in shards_of(plan, stage)] if stage in SHARD_DIGESTS else [None]:
            yield stage, shard


def stages(plan: Plan) -> list[str]:
    """Those whose outputs make a version of ``plan``, in order."""
    return [stage for stage in CODE_VERSIONS if stage != "sign-documents" or plan.parameters.duplicates != "keep"]


UNITS = {
    "tokenize-and-chunk": "documents",
    "embed-chunks": "chunks",
    "train-faiss-index": "training_vectors",
    "build-faiss-index": "vectors",
    "merge-indexes": "vectors",
    "tune-search": "queries",
    "retrieve-neighbours": "rows",
}
"""Stages in order, and what their rate counts."""
