"""The stages of a run, each defined once and in order: what it maps over, where it writes, what marks it as done.

The commands of ``retro-ops``, the tables of ``runtime.toml``, the locations that tasks return, the card, the estimate
and the tests of the DAGs all follow from this table. Standard library only, because Airflow parses it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from retro_ops.plan.plan import Plan, Shard

Marker = Literal["output", "parts", "next plan", "report", "current"]
"""The object that exists if and only if a stage is done: the file named by ``--output``; a report beside the parts of a
source file; the plan for the next stages; its report; the object that names the published version."""

Folder = Literal["corpus", "shards", "index", "versions"]


@dataclass(frozen=True)
class Stage:
    name: str
    help: str
    marker: Marker = "report"
    maps_over: Literal["file", "shard", "cell", "part"] | None = None
    """A task handles one of these, or a group; None: the stage runs once."""
    folder: Folder | None = None
    """Folder of the dataset that holds its outputs; None: they lie beside the plan."""
    code_version: int | None = None
    """Part of its digest; raised by one whenever it would write other bytes for the same input and parameters, or other
    checkpoints. None: it has no output of its own."""
    in_version: bool = True
    """Whether a published version contains its output."""
    unit: str | None = None
    """Key of the counts in its report that is the unit of its rate; None: the card does not list it."""
    gpu: bool = False
    """Whether it uses a GPU and so needs a slot of the GPU pool."""
    base_memory_mib: int | None = None
    """Peak memory that does not grow with the data: Python, libraries, model, blocks. None: not estimated."""
    start_s: float = 0.1
    """Seconds to load tokenizer, model and fonts."""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "list-sources",
            "check a corpus recipe and list its source files",
            marker="output",
            in_version=False,
        ),
        Stage(
            "split-corpus",
            "split a source file of a recipe into per-shard parts, by category and split",
            marker="parts",
            maps_over="file",
            folder="corpus",
            code_version=1,
            in_version=False,
        ),
        Stage(
            "plan",
            "read the corpus, name its shards, check the parameters, and write the plan of a run",
            marker="output",
            in_version=False,
        ),
        Stage(
            "sign-documents",
            "compute the MinHash signatures of a shard's documents, and compare them with benchmark texts",
            maps_over="shard",
            folder="shards",
            code_version=2,
            in_version=False,
        ),
        Stage(
            "find-duplicates",
            "find documents that repeat others or benchmark texts, and list the records that each shard leaves out",
            marker="next plan",
            in_version=False,
        ),
        Stage(
            "tokenize-and-chunk",
            "tokenise documents and cut them into chunks",
            maps_over="shard",
            folder="shards",
            code_version=3,
            unit="documents",
            base_memory_mib=430,
            start_s=3.4,
        ),
        Stage(
            "embed-chunks",
            "embed chunks with a sentence-transformer",
            maps_over="shard",
            folder="shards",
            code_version=1,
            unit="chunks",
            gpu=True,
            base_memory_mib=1700,
            start_s=5.0,
        ),
        Stage(
            "check-drift",
            "decide whether the trained index of the published version still fits the corpus",
            marker="next plan",
            in_version=False,
        ),
        Stage(
            "search-samples",
            "compare the sampled queries of `tune-search` and `describe` with a part of the vectors of a large index",
            maps_over="part",
            in_version=False,
            gpu=True,
            base_memory_mib=360,
        ),
        Stage(
            "train-faiss-index",
            "train a faiss index on a sample of the embeddings",
            folder="index",
            code_version=2,
            unit="training_vectors",
            gpu=True,
            base_memory_mib=300,
        ),
        Stage(
            "build-faiss-index",
            "add embeddings to a trained index, in the order of the spec",
            maps_over="shard",
            folder="shards",
            code_version=1,
            unit="vectors",
            gpu=True,
            base_memory_mib=110,
        ),
        Stage(
            "merge-indexes",
            "join the partial indexes in a trained (or filled) index: the same bytes as one serial build",
            folder="index",
            code_version=1,
            unit="vectors",
            base_memory_mib=110,
        ),
        Stage(
            "tune-search",
            "measure which nprobe and number of candidates reach the target recall",
            folder="index",
            code_version=1,
            unit="queries",
            gpu=True,
            base_memory_mib=360,
        ),
        Stage(
            "search-parts",
            "search a part of the vectors for a range of the queries: a cell of a grid, for `retrieve-neighbours`",
            maps_over="cell",
            in_version=False,
            gpu=True,
        ),
        Stage(
            "retrieve-neighbours",
            "retrieve the nearest chunks of other documents for each chunk",
            maps_over="shard",
            folder="shards",
            code_version=2,
            unit="rows",
            gpu=True,
            base_memory_mib=360,
        ),
        Stage(
            "validate-shards",
            "check all files of a shard against the rules of the formats, for `validate` in a large corpus",
            maps_over="shard",
            in_version=False,
            base_memory_mib=150,
        ),
        Stage(
            "write-specs",
            "write the spec files that the other stages and RETRO trainers read",
            folder="versions",
            code_version=3,
        ),
        Stage(
            "describe",
            "measure the neighbours and write the dataset card",
            folder="versions",
            code_version=1,
            gpu=True,
            base_memory_mib=500,
            start_s=4.0,
        ),
        Stage(
            "validate",
            "check a dataset against every rule of the formats",
            folder="versions",
            base_memory_mib=150,
        ),
        Stage(
            "publish",
            "make a validated version the current one of its dataset",
            marker="current",
            folder="versions",
        ),
    )
}
"""Every stage by name, in the order of a run."""

CODE_VERSIONS = {
    stage.name: stage.code_version
    for stage in STAGES.values()
    if stage.code_version is not None and stage.folder != "corpus"
}
"""Code versions of the stages after the plan, as plans and manifests record them."""

SHARD_STAGES = tuple(stage.name for stage in STAGES.values() if stage.maps_over == "shard" and stage.in_version)
"""Stages that map over shards and whose outputs a version contains."""


def runs_on(stage: str, shard: Shard) -> bool:
    """Whether ``stage``, which maps over shards, has anything to do for ``shard``."""
    if stage == "build-faiss-index":
        return shard.indexed
    return shard.queried or stage != "retrieve-neighbours"


def shards_of(plan: Plan, stage: str) -> list[Shard]:
    """Shards that ``stage`` maps over, in the plan's order."""
    return [shard for shard in plan.shards if runs_on(stage, shard)]


def tasks(plan: Plan, stages: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(stage, shard) of every task of ``stages``, in order; shard is None if a stage runs once."""
    for stage in stages:
        over_shards = STAGES[stage].maps_over == "shard"
        for shard in [shard.name for shard in shards_of(plan, stage)] if over_shards else [None]:
            yield stage, shard


def stages(plan: Plan) -> list[str]:
    """Stages of a run of ``plan`` that leave a report with outputs, in order."""
    return [stage for stage in CODE_VERSIONS if stage != "sign-documents" or plan.parameters.compares_documents]
