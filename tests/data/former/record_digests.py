"""Records ``digests.json``. Runs on the code of commit 362b093 alone; see README.md."""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from retro_ops.specs import Parameters, Plan, plan_from_json, plan_to_json

from retro_ops import layout, listing, recipes

Document = dict[str, Any]


def shard(name: str, split: str = "train", **more: Any) -> Document:
    sources = [{"uri": f"/corpus/{name}.jsonl", "bytes": 10, "fingerprint": f"sha256:{name}"}]
    return {"name": name, "split": split, "sources": sources, **more}


def shards(**more: Document) -> list[Document]:
    """a, b, c of training and v, w of validation; ``more``: further fields by shard."""
    return [shard(name, "val" if name in "vw" else "train", **more.get(name, {})) for name in "abcvw"]


PLAN: Document = {
    "format": 2,
    "dataset": "d",
    "root": "s3://bucket/root",
    "parameters": dataclasses.asdict(Parameters()),
    "identity": {
        "tokenizer_digest": "0123456789abcdef",
        "vocabulary_size": 30522,
        "pad_id": 0,
        "model_digest": "fedcba9876543210",
        "dimension": 384,
    },
    "shards": shards(),
    "skipped": [],
    "corpus": "/corpus",
    "validation_corpus": None,
    "as_of": None,
    "base": None,
    "condemned": [],
    "supersedes": 0,
    "code_versions": dict(layout.CODE_VERSIONS),
}

PARAMETERS: Document = {
    "tokenizer": "other",
    "pad_id": 7,
    "chunk_size": 32,
    "max_chunks": 100,
    "token_dtype": "uint32",
    "on_bad_record": "fail",
    "max_bad_share": 0.1,
    "model": "other",
    "embed_input": "ids",
    "batch_size": 3,
    "index_type": "IVF4,PQ8x4",
    "index_memory": "8GiB",
    "index_too_small": "downgrade",
    "max_training_vectors": 99,
    "seed": 1,
    "num_neighbours": 2,
    "profile": "seed",
    "nprobe": 3,
    "retrieval_margin": 5,
    "target_recall": 1,
    "recall_sample": 10,
    "max_overlap": 0.5,
    "max_shared_run": 8,
    "max_shared_ngrams": 0.25,
    "min_recall": 0.1,
    "min_full_rows": 0.1,
    "max_duplicates": 0.1,
    "max_leaked": 0.1,
    "max_imbalance": 2.5,
    "max_drift": 0.5,
    "device": "cpu",
    "shard_index": True,
    "memory_budget": "1GiB",
    "search_memory": "1GiB",
    "duplicates": "drop",
    "duplicate_threshold": 0.5,
}
"""Another value for each."""

IDENTITY = {"tokenizer_digest": "1", "vocabulary_size": 70_000, "pad_id": 1, "model_digest": "2", "dimension": 8}

WITHOUT = {"uri": "s3://bucket/root/d/shards/b/without-1/records.npy", "bytes": 136, "fingerprint": "sha256:1"}

RECIPE = """\
categories: [docs, code, web]
sources:
  - files: "a/{00..01}.jsonl"
    category: {field: meta.kind, values: {d: docs, c: code}}
    split: {val: 0.1, id: id}
    cut: {documents: 3}
    shard: {train: "{file}_{number:02}_{category}", val: "val_{file}_{category}_{number:02}"}
  - files: "web/*.jsonl"
    category: {path: {"web/x*.jsonl": web, "web/y*.jsonl": docs}}
    text: content
    max_documents: 5
  - files: more.jsonl
    category: code
    split: val
    optional: true
"""
FILES = {"a/00.jsonl": "0\n", "a/01.jsonl": "1\n", "web/x1.jsonl": "2\n", "web/y1.jsonl": "3\n", "more.jsonl": "4\n"}
SETTINGS = ("quarantine", 0.5, 8388608)


def changed(document: Document, changes: Document) -> Document:
    """``changes`` laid over ``document``: mappings are merged, all else is replaced."""
    merged = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(document.get(key), dict)
        merged[key] = changed(document[key], value) if both else value
    return merged


def digests(plan: Plan) -> dict[str, str]:
    """Of every output, by stage and shard."""
    stages = ("sign-documents", *layout.stages(plan), "validate", "publish")
    return {
        f"{stage} {name}" if name else stage: layout.output_digest(plan, stage, name)
        for stage, name in layout.tasks(plan, dict.fromkeys(stages))
    }


def locations(plan: Plan) -> dict[str, Any]:
    """Of every file of the plan, for a split and a shard of each kind."""
    run = layout.plan_uri(plan.root, plan.dataset, "manual__2026-01-01T00:00:00+00:00")
    chunks = layout.chunks_files(plan, "a")
    return {
        "run": run,
        "sources": layout.sources_uri(plan.root, plan.dataset, "a run"),
        "plans_after": layout.plans_after(run),
        "beside_the_plan": [
            *(layout.estimate_uri(run), layout.changes_uri(run), layout.duplicates_uri(run), layout.drift_uri(run)),
        ],
        "dataset": [f(plan.root, plan.dataset) for f in (layout.current_uri, layout.condemned_uri)],
        "split_corpus": layout.part_uri(layout.parts_folder(plan.root, plan.dataset, "file", "0"), "a"),
        "reports": [
            layout.report_uri(plan, stage, name)
            for stage, name in layout.tasks(plan, ("sign-documents", *layout.stages(plan), "validate", "publish"))
        ],
        "signatures": layout.signature_files(plan, "a"),
        "without": layout.without_uri(plan, "a", "0"),
        "chunks": chunks,
        "beside_the_chunks": [
            *(layout.documents_uri(chunks["chunks"]), layout.document_ids_uri(chunks["chunks"])),
            *(layout.quarantine_uri(chunks["chunks"]), layout.unfinished_folder(chunks["chunks"], "0")),
        ],
        "embeddings": layout.embeddings_uri(plan, "a"),
        "indexes": [
            *(layout.trained_index_uri(plan), layout.partial_index_uri(plan, "a")),
            *(layout.index_uri(plan, "train"), layout.index_uri(plan, "val")),
        ],
        "neighbours": [layout.neighbours_uri(plan, "a"), layout.distances_uri(layout.neighbours_uri(plan, "a"))],
        "version": [
            *(layout.index_spec_uri(plan, "train"), layout.dataset_spec_uri(plan, "val"), layout.manifest_uri(plan)),
            *(layout.version_plan_uri(plan), layout.card_uri(plan, "json"), layout.card_uri(plan, "html")),
        ],
    }


def cases(found: dict[str, str]) -> dict[str, Document]:
    """What is laid over the plan, by what it is about. ``found``: digests of the plan itself."""
    base = {
        "version": "versions/0",
        "trained": "aaaaaaaaaaaaaaaa",
        "index": "bbbbbbbbbbbbbbbb",
        "tuning": "cccccccccccccccc",
        "shards": [
            {
                "name": name,
                "split": "val" if name in "vw" else "train",
                "chunks": 5,
                "embeddings": found[f"embed-chunks {name}"],
                "neighbours": "dddddddddddddddd",
            }
            for name in "abcvw"
        ],
    }
    choice = shards(a={"queried": False}, c={"indexed": False}, w={"indexed": False})
    return {
        **{f"parameter {name}": {"parameters": {name: value}} for name, value in PARAMETERS.items()},
        **{f"identity {name}": {"identity": {name: value}} for name, value in IDENTITY.items()},
        **{
            f"condemned {output}": {"condemned": [digest]}
            for output, digest in found.items()
            if output[-2:] not in (" b", " c", " w")
        },
        "code versions of the plan": {"code_versions": dict.fromkeys(layout.CODE_VERSIONS, 1)},
        "no code versions": {"code_versions": None},
        "choice": {"shards": choice, "index_shards": "[!cw]*", "query_shards": "[!a]*"},
        "only validation is queried": {"shards": shards(**{name: {"queried": False} for name in "abc"})},
        "without": {"shards": shards(b={"without": WITHOUT}), "deduplicated": True},
        "recipe": {"recipe": "s3://bucket/recipe.yaml", "source_folder": "s3://bucket/in", "corpus": None},
        "as of": {"as_of": "2026-01-31", "supersedes": None, "skipped": ["x"]},
        "base": {"base": base},
        "base that has nothing but vectors": {"base": {**base, "index": None, "tuning": None}},
        "base and a shard that changed": {"base": base, "shards": [*shards()[1:], shard("x")]},
        "base without neighbours": {
            "base": {**base, "shards": [{**former, "neighbours": None} for former in base["shards"]]}
        },
        "base and a choice": {"base": base, "shards": choice},
        "base, condemned": {"base": base, "condemned": ["aaaaaaaaaaaaaaaa", "dddddddddddddddd"]},
    }


def split_digests() -> dict[str, dict[str, str]]:
    """Of the source files of RECIPE: their names and digests."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            (Path(folder) / name).parent.mkdir(exist_ok=True)
            (Path(folder) / name).write_text(text)
        recipe = recipes.read(RECIPE, f"{folder}/recipe.yaml")
        found = [listing.source_file(recipe, folder, file, SETTINGS) for file in listing.find(recipe, folder)[0]]
        return {str(Path(of.uri).relative_to(folder)): {"name": of.name, "digest": of.digest} for of in found}


def main() -> None:
    def read(document: Document) -> Plan:
        return plan_from_json(json.dumps(document), "digests.json")

    plain = digests(read(PLAN))
    recorded = {}
    for name, changes in cases(plain).items():
        plan = read(changed(PLAN, changes))
        differ = {output: of for output, of in digests(plan).items() if plain.get(output) != of}
        gone = sorted(set(plain) - set(digests(plan)))
        sha256 = hashlib.sha256(plan_to_json(plan).encode()).hexdigest()
        recorded[name] = {"changes": changes, "differ": differ, "gone": gone, "sha256": sha256}
    document = {
        "plan": PLAN,
        "text": plan_to_json(read(PLAN)),
        "digests": plain,
        "locations": locations(read(PLAN)),
        "cases": recorded,
        "recipe": {"text": RECIPE, "files": FILES, "settings": SETTINGS, "found": split_digests()},
    }
    Path(__file__).with_name("digests.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
