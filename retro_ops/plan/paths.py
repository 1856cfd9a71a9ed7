"""Where everything lies in the store. A path that is built anywhere else is a bug.

A stage's output folder carries a digest of everything that decides its content: the digests of its
inputs, the parameters it reads and the version of its code. So nothing is ever overwritten, a rerun
finds its output done, and a changed parameter cannot reuse an old output. The digest follows from
the plan alone, so whoever holds the plan (Airflow too) knows every location before a stage has run.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, Literal, ParamSpec

from retro_ops.errors import BadInputError
from retro_ops.plan.specs import (
    BaseShard,
    DatasetShard,
    DatasetSpec,
    IndexShard,
    Parameters,
    Plan,
    Shard,
    Split,
    check_name,
)
from retro_ops.sizes import parse_bytes
from retro_ops.uris import beside, join

CODE_VERSIONS = {
    "sign-documents": 1,
    "tokenize-and-chunk": 3,
    "embed-chunks": 1,
    "train-faiss-index": 1,
    "build-faiss-index": 1,
    "merge-indexes": 1,
    "tune-search": 1,
    "retrieve-neighbours": 2,
    "write-specs": 3,
    "describe": 1,
}
"""Raised by one whenever a stage would write other bytes for the same input and parameters, or other blocks of
what is unfinished."""

SPLIT_CORPUS_VERSION = 1
"""Of ``split-corpus``, which comes before the plan and so is in none: raised as those above."""

SHARD_STAGES = ("tokenize-and-chunk", "embed-chunks", "build-faiss-index", "retrieve-neighbours")

REPORT = "report.json"

ROOMS = ("shards", "index", "versions")
"""Folders of a dataset in which stages write."""

P = ParamSpec("P")


def digest(*parts: Any) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of ``parts``."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def dataset_folder(root: str, dataset: str) -> str:
    return join(root, check_name("dataset", dataset))


def run_folder(root: str, dataset: str, run: str) -> str:
    """Folder of one run; ``run`` may be any text, such as an Airflow run id."""
    return join(dataset_folder(root, dataset), "runs", re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip(".-") or "run")


def plan_uri(root: str, dataset: str, run: str) -> str:
    return join(run_folder(root, dataset, run), "plan.json")


def sources_uri(root: str, dataset: str, run: str) -> str:
    """The files of the run's recipe, as ``list-sources`` found them."""
    return join(run_folder(root, dataset, run), "sources.json")


def is_list_of_sources(uri: str) -> bool:
    return uri.rpartition("/")[2] == "sources.json"


def parts_folder(root: str, dataset: str, source_file: str, digest: str) -> str:
    """What ``split-corpus`` makes of a source file: a part for each shard that it has documents for."""
    return join(dataset_folder(root, dataset), "corpus", source_file, f"split-corpus-{digest}")


def part_uri(parts: str, shard: str) -> str:
    return join(parts, f"{shard}.jsonl.zst")


def bad_lines_uri(parts: str) -> str:
    """Lines of a source file that are no document, beside its parts; absent when there were none."""
    return join(parts, "quarantine.jsonl")


def selected_plan_uri(plan_location: str) -> str:
    """The plan without the shards that failed, written by the gate beside the plan itself."""
    return plan_location.removesuffix(".json") + ".selected.json"


def decided_plan_uri(plan_location: str) -> str:
    """The plan after the check for drift, beside the one it was made from."""
    return plan_location.removesuffix(".json") + ".decided.json"


def first_plan_uri(plan_location: str) -> str:
    """The plan as `plan` wrote it, which knows the shards that failed later; facts about a run lie beside it."""
    suffix = next((suffix for suffix in PLAN_SUFFIXES if plan_location.endswith(suffix)), ".json")
    return plan_location.removesuffix(suffix) + ".json"


def deduplicated_plan_uri(plan_location: str) -> str:
    """The plan after the search for duplicates, which says what each shard is without."""
    return plan_location.removesuffix(".json") + ".deduplicated.json"


def plans_after(plan_location: str) -> list[str]:
    """Whatever a plan may become: after the search for duplicates, without failed shards, after the check for drift, or
    several of these; the last first."""
    return [plan_location.removesuffix(".json") + suffix for suffix in PLAN_SUFFIXES]


def estimate_uri(plan_location: str) -> str:
    """What the plan expects of its run."""
    return beside(first_plan_uri(plan_location), "estimate.json")


def is_plan(uri: str) -> bool:
    """Whether ``uri`` is a plan of a run: the first, or what became of it."""
    return uri.rpartition("/")[2] in ("plan.json", *PLANS_AFTER_PLAN)


PLAN_SUFFIXES = (
    *(".deduplicated.selected.decided.json", ".deduplicated.decided.json", ".deduplicated.selected.json"),
    *(".deduplicated.json", ".selected.decided.json", ".decided.json", ".selected.json"),
)
PLANS_AFTER_PLAN = tuple(f"plan{suffix}" for suffix in PLAN_SUFFIXES)


def changes_uri(plan_location: str) -> str:
    """What differs from the published version, as `plan` found it."""
    return beside(first_plan_uri(plan_location), "changes.json")


def duplicates_uri(plan_location: str) -> str:
    """How many documents repeat others, and examples, as `find-duplicates` found them."""
    return beside(first_plan_uri(plan_location), "duplicates.json")


def drift_uri(plan_location: str) -> str:
    """Whether the trained index still fits, and the figures that say so."""
    return beside(first_plan_uri(plan_location), "drift.json")


def current_uri(root: str, dataset: str) -> str:
    """The object that names the published version; it changes by compare-and-swap, last of all."""
    return join(dataset_folder(root, dataset), "current.json")


def condemned_uri(root: str, dataset: str) -> str:
    """Digests of outputs that were found damaged. Nothing uses them again."""
    return join(dataset_folder(root, dataset), "condemned.json")


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
    """Of an output: worked out once for a plan, and another one where the output was found damaged."""

    @functools.wraps(digest_of)
    def of(plan: Plan, /, *what: P.args, **none: P.kwargs) -> str:
        key = (digest_of.__name__, *(entry.name if isinstance(entry, Shard) else str(entry) for entry in what))
        if key not in plan.memo:
            found = digest_of(plan, *what, **none)
            while found in plan.is_condemned:
                found = digest("again", found)
            plan.memo[key] = found
        return plan.memo[key]

    return of


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


def stage_folder(plan: Plan, stage: str, shard: str | None = None) -> str:
    """Output folder of ``stage``; the stages that map over shards need ``shard``."""
    base, name = dataset_folder(plan.root, plan.dataset), output_digest(plan, stage, shard)
    if stage in VERSION_STAGES:
        return join(base, "versions", name)
    return join(base, *(("shards", str(shard)) if stage in SHARD_DIGESTS else ("index",)), f"{stage}-{name}")


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


def report_uri(plan: Plan, stage: str, shard: str | None = None) -> str:
    """The commit marker of a stage: it is done if and only if this object exists."""
    return report_in(stage_folder(plan, stage, shard), stage)


def report_in(folder: str, stage: str) -> str:
    """Report of ``stage`` in its folder; the later stages of a version share one."""
    return join(folder, f"{stage}.{REPORT}" if stage in ("validate", "describe", "publish") else REPORT)


def signature_files(plan: Plan, shard: str) -> dict[str, str]:
    folder = stage_folder(plan, "sign-documents", shard)
    return {name: join(folder, f"{name}.npy") for name in ("signatures", "contents", "records")}


def without_uri(plan: Plan, shard: str, content: str) -> str:
    """Numbers of the records that a shard is without, in a folder named by ``content``: the same in any run."""
    return join(
        dataset_folder(plan.root, plan.dataset),
        "shards",
        check_name("shard", shard),
        f"without-{content}",
        "records.npy",
    )


def chunks_files(plan: Plan, shard: str) -> dict[str, str]:
    folder = stage_folder(plan, "tokenize-and-chunk", shard)
    return {name: join(folder, f"{name}.npy") for name in ("chunks", "seq2chunk", "chunk2seq")}


def documents_uri(chunks: str) -> str:
    """The sidecar that says which document is which, beside the chunks."""
    return beside(chunks, "documents.jsonl.zst")


def document_ids_uri(chunks: str) -> str:
    """Identity of the document of each chunk, beside the chunks."""
    return beside(chunks, "document_ids.npy")


def quarantine_uri(chunks: str) -> str:
    """Records that could not be read, beside the chunks; absent when there were none."""
    return beside(chunks, "quarantine.jsonl")


def unfinished_folder(output: str, digest: str) -> str:
    """Finished blocks of an output that is being made, beside it; they go when its report is written."""
    return beside(output, f"unfinished-{digest}")


def block_uri(folder: str, number: int) -> str:
    return join(folder, f"{number:05}.npz")


def embeddings_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "embed-chunks", shard), "embeddings.npy")


def trained_index_uri(plan: Plan) -> str:
    return join(stage_folder(plan, "train-faiss-index"), "trained.index")


def partial_index_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "build-faiss-index", shard), "partial.index")


def index_uri(plan: Plan, split: Split) -> str:
    return join(stage_folder(plan, "merge-indexes"), f"{split}.index")


def neighbours_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "retrieve-neighbours", shard), "neighbours.npy")


def former_neighbours_uri(plan: Plan, former: BaseShard) -> str:
    """Of a shard in the base version."""
    folder = join(dataset_folder(plan.root, plan.dataset), "shards", former.name)
    return join(folder, f"retrieve-neighbours-{former.neighbours}", "neighbours.npy")


def former_index_uri(plan: Plan, split: Split) -> str:
    assert plan.base
    folder = join(dataset_folder(plan.root, plan.dataset), "index", f"merge-indexes-{plan.base.index}")
    return join(folder, f"{split}.index")


def index_spec_uri(plan: Plan, split: Split) -> str:
    return join(stage_folder(plan, "write-specs"), f"{split}.index.spec.json")


def distances_uri(neighbours: str) -> str:
    """Squared L2 distances of the neighbours, beside them: ``x.neighbours.npy`` -> ``x.distances.npy``."""
    folder, slash, name = neighbours.rpartition("/")
    if "neighbours" in name:
        return folder + slash + name.replace("neighbours", "distances")
    return beside(neighbours, "distances.npy")


def dataset_spec_uri(plan: Plan, split: Split) -> str:
    return dataset_spec_in(stage_folder(plan, "write-specs"), split)


def dataset_spec_in(version: str, split: Split) -> str:
    """Of a version by its folder, whatever code made it; likewise below."""
    return join(version, f"{split}.data.spec.json")


def manifest_uri(plan: Plan) -> str:
    return manifest_in(stage_folder(plan, "write-specs"))


def manifest_in(version: str) -> str:
    return join(version, "manifest.json")


def version_plan_uri(plan: Plan) -> str:
    """What the version was made by, in its own folder: a run may be planned again."""
    return join(stage_folder(plan, "write-specs"), "plan.json")


def card_uri(plan: Plan, kind: Literal["json", "html"]) -> str:
    """What describes a version: figures for programs, a page for people."""
    return card_in(stage_folder(plan, "describe"), kind)


def card_in(version: str, kind: Literal["json", "html"]) -> str:
    return join(version, f"card.{kind}")


def index_shards(plan: Plan, split: Split) -> tuple[IndexShard, ...]:
    return tuple(index_shard(plan, shard.name) for shard in plan.indexed(split))


def index_shard(plan: Plan, shard: str) -> IndexShard:
    return IndexShard(**chunks_files(plan, shard), embeddings=embeddings_uri(plan, shard))


def dataset_spec(plan: Plan, split: Split) -> DatasetSpec:
    return DatasetSpec(
        shards=tuple(
            DatasetShard(**chunks_files(plan, shard.name), neighbours=neighbours_uri(plan, shard.name))
            for shard in plan.queried(split)
        ),
        faiss_index=index_uri(plan, split),
        index_spec=index_spec_uri(plan, split),
    )
