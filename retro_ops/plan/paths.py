"""The locations of all files of a dataset. No other module builds these paths.

The name of an output folder contains a digest of everything that decides its content: the digests of its inputs, the
parameters that the stage reads and the version of its code. So outputs are never overwritten, a rerun finds finished
outputs, and a changed parameter cannot reuse an old output. The digest follows from the plan alone, so every location
is known before a stage has run, also to Airflow.
"""

import functools
import hashlib
import re
from itertools import product
from typing import Literal

from retro_ops.plan.digests import cells_digest, output_digest, samples_digest, version_digest
from retro_ops.plan.grid import Cell
from retro_ops.plan.plan import BaseShard, Plan, Split, check_name
from retro_ops.plan.sample_parts import SamplePart
from retro_ops.plan.specs import DatasetShard, DatasetSpec, IndexShard
from retro_ops.plan.stage_graph import STAGES
from retro_ops.uris import beside, join, parent

REPORT = "report.json"
APPROVAL = "approval-requested.json"

AIRFLOWS_OWN = r"[a-z_]+__\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00(_\w+)?"
"""Run ids that Airflow makes: ``manual__2026-01-01T03:00:00+00:00``. They differ by time, so they need no hash."""

LONGEST_RUN = 250
"""Characters of a run id that names its folder; file systems take 255."""

BEFORE_HASH = 200
"""Characters of a run id in the name of its folder, where a hash follows."""

TOP_FOLDERS = ("shards", "index", "versions")
"""Folders of a dataset that hold outputs of stages."""


def dataset_folder(root: str, dataset: str) -> str:
    return join(root, check_name("dataset", dataset))


def root_key(root: str) -> str:
    """Stands for ``root`` in the addresses of pages."""
    return hashlib.sha256(root.rstrip("/").encode()).hexdigest()[:8]


def run_folder(root: str, dataset: str, run: str) -> str:
    """Folder of one run; ``run`` may be any text, such as an Airflow run id."""
    return join(dataset_folder(root, dataset), "runs", run_name(run))


def run_name(run: str) -> str:
    """Name of the folder of ``run``: its id with unusual characters replaced. Ids that are neither unchanged by this
    nor made by Airflow, and long ones, get a hash as well, so that two runs never share a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip(".-") or "run"
    if len(run) <= LONGEST_RUN and (name == run or re.fullmatch(AIRFLOWS_OWN, run)):
        return name
    return f"{name[:BEFORE_HASH]}-{hashlib.sha256(run.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def plan_uri(root: str, dataset: str, run: str) -> str:
    return join(run_folder(root, dataset, run), "plan.json")


def sources_uri(root: str, dataset: str, run: str) -> str:
    """The list of source files of the run's recipe, written by ``list-sources``."""
    return join(run_folder(root, dataset, run), "sources.json")


def is_list_of_sources(uri: str) -> bool:
    """Whether ``uri`` is the list of source files of a run."""
    return uri.rpartition("/")[2] == "sources.json"


def parts_folder(root: str, dataset: str, source_file: str, digest: str) -> str:
    """Output folder of ``split-corpus`` for a source file: one part for each shard that it has documents for."""
    return join(dataset_folder(root, dataset), "corpus", source_file, f"split-corpus-{digest}")


def part_uri(parts: str, shard: str) -> str:
    return join(parts, f"{shard}.jsonl.zst")


def bad_lines_uri(parts: str) -> str:
    """Bad lines of a source file, next to its parts; the file does not exist if there were none."""
    return join(parts, "quarantine.jsonl")


def split_report_uri(part: str) -> str:
    """Report of `split-corpus` for the source file that ``part`` was written from."""
    return report_in(parent(part), "split-corpus")


PLAN_STEPS = ("deduplicated", "selected", "decided")
"""Steps that a plan may go through, in this order. Each writes a plan beside the previous one, named after it:
`find-duplicates` lists the records that each shard leaves out, the gate leaves out failed shards, `check-drift` decides
about the index."""


def next_plan_uri(plan_location: str, step: str) -> str:
    """Plan after ``step`` (one of PLAN_STEPS): ``plan.json`` -> ``plan.selected.json``."""
    assert step in PLAN_STEPS
    return f"{plan_location.removesuffix('.json')}.{step}.json"


def first_plan_uri(plan_location: str) -> str:
    """The first plan of the run, with the shards that failed later; facts about the run lie beside it."""
    return re.sub(rf"(\.({'|'.join(PLAN_STEPS)}))+\.json$", ".json", plan_location)


def plans_after(plan_location: str) -> list[str]:
    """Every plan that may follow the one at ``plan_location``; the first that exists is the current one."""
    plans = []
    for deduplicated, decided, selected in product((True, False), repeat=3):
        taken = zip(PLAN_STEPS, (deduplicated, selected, decided), strict=True)
        plans.append(functools.reduce(next_plan_uri, [step for step, is_taken in taken if is_taken], plan_location))
    return plans[:-1]  # The last took no step.


def is_plan(uri: str) -> bool:
    """Whether ``uri`` is a plan of a run: the first or a later one."""
    return first_plan_uri(uri).rpartition("/")[2] == "plan.json"


def approval_uri(plan_location: str) -> str:
    """Exists while the run waits for approval."""
    return beside(first_plan_uri(plan_location), APPROVAL)


def is_approval(uri: str) -> bool:
    """Whether ``uri`` is such a file of any run."""
    return uri.endswith(f".{APPROVAL}")


def estimate_uri(plan_location: str) -> str:
    """The estimate of the plan: chunks, bytes, memory and seconds."""
    return beside(first_plan_uri(plan_location), "estimate.json")


def tokenizer_uri(plan_location: str) -> str:
    """The tokenizer of the chunks as `plan` loaded it."""
    return beside(first_plan_uri(plan_location), "tokenizer.json")


def search_folder(plan_location: str) -> str:
    """What a run needs until it is published: the cells of a grid, hits of samples, and reports of checked shards."""
    return join(parent(plan_location), "search")


def cell_folder(plan: Plan, plan_location: str, cell: Cell) -> str:
    digest = cells_digest(plan, cell.split)
    return join(search_folder(plan_location), f"{cell.split}-{digest}", cell.name)


def sample_folder(plan: Plan, plan_location: str, part: SamplePart) -> str:
    return join(search_folder(plan_location), f"samples-{samples_digest(plan)}", part.name)


def checked_shard_uri(plan: Plan, plan_location: str, shard: str) -> str:
    """The report of `validate-shards`."""
    return join(search_folder(plan_location), f"validated-{version_digest(plan)}", check_name("shard", shard), REPORT)


def changes_uri(plan_location: str) -> str:
    """The changes since the published version, written by `plan`."""
    return beside(first_plan_uri(plan_location), "changes.json")


def duplicates_uri(plan_location: str) -> str:
    """Counts and examples of duplicates, written by `find-duplicates`."""
    return beside(first_plan_uri(plan_location), "duplicates.json")


def contamination_uri(plan_location: str) -> str:
    """Counts and examples of documents that hold benchmark texts, written by `find-duplicates`."""
    return beside(first_plan_uri(plan_location), "contamination.json")


FOUND = {"duplicates": duplicates_uri, "contamination": contamination_uri}
"""What `find-duplicates` wrote, by its key in the card."""


def drift_uri(plan_location: str) -> str:
    """The decision of `check-drift` on the trained index, with its figures."""
    return beside(first_plan_uri(plan_location), "drift.json")


def current_uri(root: str, dataset: str) -> str:
    """The object with the published versions. It changes only by compare-and-swap, as the last step of a run."""
    return join(dataset_folder(root, dataset), "current.json")


def condemned_uri(root: str, dataset: str) -> str:
    """The digests of damaged outputs, which are never used again."""
    return join(dataset_folder(root, dataset), "condemned.json")


def readers_folder(root: str, dataset: str) -> str:
    """Leases of the processes that have a version open."""
    return join(dataset_folder(root, dataset), "readers")


def stage_folder(plan: Plan, stage: str, shard: str | None = None) -> str:
    """Output folder of ``stage``; the stages that map over shards need ``shard``."""
    folder, digest = STAGES[stage].folder if stage in STAGES else None, output_digest(plan, stage, shard)
    base = join(dataset_folder(plan.root, plan.dataset), str(folder))
    if folder == "versions":
        return join(base, digest)
    return join(base, *([str(shard)] if folder == "shards" else []), f"{stage}-{digest}")


def report_uri(plan: Plan, stage: str, shard: str | None = None) -> str:
    """The report of a stage, which is done if and only if this object exists."""
    return report_in(stage_folder(plan, stage, shard), stage)


def report_in(folder: str, stage: str) -> str:
    """The report of ``stage`` in ``folder``. Stages that share the folder of a version have a report name each."""
    shares = STAGES[stage].folder == "versions" and stage != "write-specs"
    return join(folder, f"{stage}.{REPORT}" if shares else REPORT)


def signature_files(plan: Plan, shard: str) -> dict[str, str]:
    """The arrays of `sign-documents` for a shard, by name."""
    folder = stage_folder(plan, "sign-documents", shard)
    return {name: join(folder, f"{name}.npy") for name in ("signatures", "contents", "records")}


def overlaps_uri(plan: Plan, shard: str) -> str:
    """What documents of a shard share with benchmark texts, next to its signatures: int64 ``[pairs, 3]``, the record,
    the number of the benchmark file and the line."""
    return join(stage_folder(plan, "sign-documents", shard), "overlaps.npy")


def without_uri(plan: Plan, shard: str, content: str) -> str:
    """Numbers of the records that a shard leaves out, in a folder named by the digest ``content``."""
    return join(
        dataset_folder(plan.root, plan.dataset),
        "shards",
        check_name("shard", shard),
        f"without-{content}",
        "records.npy",
    )


def chunks_files(plan: Plan, shard: str) -> dict[str, str]:
    """The arrays of `tokenize-and-chunk` for a shard, by name."""
    folder = stage_folder(plan, "tokenize-and-chunk", shard)
    return {name: join(folder, f"{name}.npy") for name in ("chunks", "seq2chunk", "chunk2seq")}


def documents_uri(chunks: str) -> str:
    """Sidecar file with one line of metadata per document, next to the chunks."""
    return beside(chunks, "documents.jsonl.zst")


def document_ids_uri(chunks: str) -> str:
    """Identity of the document of each chunk, next to the chunks."""
    return beside(chunks, "document_ids.npy")


def quarantine_uri(chunks: str) -> str:
    """Bad records of a shard, next to the chunks; the file does not exist if there were none."""
    return beside(chunks, "quarantine.jsonl")


def unfinished_folder(output: str, digest: str) -> str:
    """Checkpoint blocks of an unfinished output, next to it; they are deleted once its report is written."""
    return beside(output, f"unfinished-{digest}")


def block_uri(folder: str, number: int) -> str:
    return join(folder, f"{number:05}.npz")


def embeddings_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "embed-chunks", shard), "embeddings.npy")


def trained_index_uri(plan: Plan) -> str:
    return join(stage_folder(plan, "train-faiss-index"), "trained.index")


def partial_index_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "build-faiss-index", shard), "partial.index")


def partial_indexes(plan: Plan, split: Split) -> tuple[str, ...]:
    """The partial indexes of the shards in the index of ``split``, in its order."""
    return tuple(partial_index_uri(plan, shard.name) for shard in plan.indexed(split))


def lists_uri(partial_index: str) -> str:
    """The inverted list of each vector of a partial index, int32 ``[vectors]``."""
    return beside(partial_index, "lists.npy")


def index_uri(plan: Plan, split: Split) -> str:
    return join(stage_folder(plan, "merge-indexes"), f"{split}.index")


def neighbours_uri(plan: Plan, shard: str) -> str:
    return join(stage_folder(plan, "retrieve-neighbours", shard), "neighbours.npy")


def kept_uri(neighbours: str) -> str:
    """All that the search found (``keep_neighbours``), next to the neighbours that were taken from it."""
    return beside(neighbours, "kept.neighbours.npy")


def base_neighbours_uri(plan: Plan, shard: BaseShard) -> str:
    """Neighbours of a shard that the search for the base version found."""
    assert plan.base
    folder = join(dataset_folder(plan.root, plan.dataset), "shards", shard.name)
    neighbours = join(folder, f"retrieve-neighbours-{shard.neighbours}", "neighbours.npy")
    return kept_uri(neighbours) if plan.base.keeps else neighbours


def base_index_uri(plan: Plan, split: Split) -> str:
    """Index of ``split`` in the base version."""
    assert plan.base
    folder = join(dataset_folder(plan.root, plan.dataset), "index", f"merge-indexes-{plan.base.index}")
    return join(folder, f"{split}.index")


def index_spec_uri(plan: Plan, split: Split) -> str:
    return join(stage_folder(plan, "write-specs"), f"{split}.index.spec.json")


def distances_uri(neighbours: str) -> str:
    """Squared L2 distances of the neighbours, next to them: ``x.neighbours.npy`` -> ``x.distances.npy``."""
    folder, slash, name = neighbours.rpartition("/")
    if "neighbours" in name:
        return folder + slash + name.replace("neighbours", "distances")
    return beside(neighbours, "distances.npy")


def dataset_spec_uri(plan: Plan, split: Split) -> str:
    return dataset_spec_in(stage_folder(plan, "write-specs"), split)


def dataset_spec_in(version: str, split: Split) -> str:
    """Dataset spec in the folder ``version``, for versions of any code version."""
    return join(version, f"{split}.data.spec.json")


def manifest_uri(plan: Plan) -> str:
    return manifest_in(stage_folder(plan, "write-specs"))


def manifest_in(version: str) -> str:
    """Manifest in the folder ``version``, for versions of any code version."""
    return join(version, "manifest.json")


def version_plan_uri(plan: Plan) -> str:
    """Copy of the plan in the folder of the version, since the plan of a run may be written again."""
    return join(stage_folder(plan, "write-specs"), "plan.json")


def card_uri(plan: Plan, kind: Literal["json", "html"]) -> str:
    """The dataset card: figures as JSON, or a page as HTML."""
    return card_in(stage_folder(plan, "describe"), kind)


def card_in(version: str, kind: Literal["json", "html"]) -> str:
    """Dataset card in the folder ``version``, for versions of any code version."""
    return join(version, f"card.{kind}")


def index_shards(plan: Plan, split: Split) -> tuple[IndexShard, ...]:
    """The entries of the index spec of ``split``."""
    return tuple(index_shard(plan, shard.name) for shard in plan.indexed(split))


def index_shard(plan: Plan, shard: str) -> IndexShard:
    return IndexShard(**chunks_files(plan, shard), embeddings=embeddings_uri(plan, shard))


def dataset_spec(plan: Plan, split: Split) -> DatasetSpec:
    """The dataset spec of ``split``."""
    return DatasetSpec(
        shards=tuple(
            DatasetShard(**chunks_files(plan, shard.name), neighbours=neighbours_uri(plan, shard.name))
            for shard in plan.queried(split)
        ),
        faiss_index=index_uri(plan, split),
        index_spec=index_spec_uri(plan, split),
    )
