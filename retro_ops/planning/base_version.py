"""Decides which outputs of the published version a new version may reuse."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS, Base, BaseShard, Plan
from retro_ops.plan.specs import dataset_spec_from_json, index_spec_from_json
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.uris import parent, relative, resolve
from retro_ops.versions import history

DECIDE_THE_CHUNKS = ("tokenizer", "pad_id", "chunk_size", "max_chunks", "token_dtype", "on_bad_record", "max_bad_share")
DECIDE_THE_EMBEDDINGS = (*DECIDE_THE_CHUNKS, "model", "embed_input")
DECIDE_THE_INDEX = (*DECIDE_THE_EMBEDDINGS, "index_type", "index_memory", "index_too_small", "max_training_vectors")
HOW_WIDE = ("nprobe", "retrieval_margin", "target_recall")
DECIDE_THE_NEIGHBOURS = ("num_neighbours", "profile", "max_overlap", "max_shared_run", "max_shared_ngrams", *HOW_WIDE)
DECIDE_THE_TUNING = (*DECIDE_THE_NEIGHBOURS, "recall_sample", "seed")

MAKE_THE_INDEX = ("tokenize-and-chunk", "embed-chunks", "train-faiss-index", "build-faiss-index", "merge-indexes")
"""Stages whose code decides whether the index of a version may be used again."""

STANDS_FOR = {"tokenizer": "tokenizer_digest", "model": "model_digest"}
"""Parameters that name a file or model. Its content, recorded in the identity, is compared instead of its name."""


def published_base(plan: Plan, series: history.Series) -> tuple[Base | None, str]:
    """The current version as the base of ``plan``, or None and the reason why it cannot be one.

    Reads the version's own specs and manifest, so it works for versions of any code version.
    """
    version, number = series.folder(), series.current
    manifest_uri = paths.manifest_in(version)
    manifest = history.manifest(version)
    if changed := _changed(plan, manifest, DECIDE_THE_INDEX) or _other_code(manifest, MAKE_THE_INDEX):
        return None, f"{changed} differ from version {number}, so everything is built again"
    digest = _digest_of_folder(resolve(manifest["trained_index"], manifest_uri))
    if digest in plan.condemned:
        return None, f"the trained index of version {number} was found damaged, so a new one is trained"
    queried = {split: names for split in SPLITS if (names := history.names_of_queries(manifest, split))}
    same_search = not (
        plan.parameters.profile == "seed"
        or _changed(plan, manifest, DECIDE_THE_NEIGHBOURS)
        or _other_code(manifest, ("retrieve-neighbours",))
    )
    others = history.embeddings_of_others(manifest, manifest_uri)
    embeddings = {name: _digest_of_folder(uri) for name, uri in others.items()}
    neighbours: dict[str, str] = {}
    index = None  # There is no merged training index if no training shard was queried.
    for split, names in queried.items():
        spec_uri = paths.dataset_spec_in(version, split)
        spec = dataset_spec_from_json(store.read(spec_uri), spec_uri)
        index = _digest_of_folder(spec.faiss_index) if split == "train" else index
        indexed = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
        digests_of_index = (_digest_of_folder(shard.embeddings) for shard in indexed)
        embeddings |= zip(history.names_of_index(manifest, split), digests_of_index, strict=True)
        neighbours |= zip(names, (_digest_of_folder(shard.neighbours) for shard in spec.shards), strict=True)
    usable = {name: folder for name, folder in neighbours.items() if same_search and folder not in plan.is_condemned}
    shards = tuple(
        BaseShard(
            name=shard["name"],
            split=shard["split"],
            chunks=shard["counts"]["chunks"],
            embeddings=embeddings[shard["name"]],
            neighbours=usable.get(shard["name"]),
            indexed=shard.get("indexed", True),
        )
        for shard in manifest["shards"]
    )
    tuning = manifest.get("tuning")
    same_tuning = not (_changed(plan, manifest, DECIDE_THE_TUNING) or _other_code(manifest, ("tune-search",)))
    same_tuning &= set(plan.splits()) <= set(queried)  # Each split is tuned separately.
    base = Base(
        version=relative(version, parent(series.uri)),
        trained=digest,
        index=None if index in plan.condemned else index,
        tuning=tuning if same_tuning and tuning not in plan.condemned else None,
        shards=shards,
    )
    return base, f"version {number}"


def _changed(plan: Plan, manifest: Mapping[str, Any], names: Iterable[str]) -> str:
    """Which of the parameters ``names`` differ from ``manifest``. A parameter that it lacks had its default."""
    before = {field.name: field.default for field in fields(Parameters)} | dict(manifest["parameters"])
    changed = [n for n in names if n not in STANDS_FOR and before[n] != getattr(plan.parameters, n)]
    known = manifest["identity"]
    changed += [n for n, key in STANDS_FOR.items() if n in names and known[key] != getattr(plan.identity, key)]
    return ", ".join(changed)


def _other_code(manifest: Mapping[str, Any], stages: Iterable[str]) -> str:
    """Which of ``stages`` had another code version in ``manifest``. A stage that it lacks counts as unchanged."""
    known = manifest.get("code_versions") or {}
    return ", ".join(stage for stage in stages if known.get(stage) not in (None, digests.CODE_VERSIONS[stage]))


def _digest_of_folder(uri: str) -> str:
    """``…/embed-chunks-0123456789abcdef/embeddings.npy`` -> ``0123456789abcdef``."""
    return parent(uri).rpartition("-")[2]


def known_duplicates(plan: Plan, series: history.Series) -> Plan:
    """``plan`` with the duplicates that the published version left out, if a new search would find the same."""
    if not series.current or plan.parameters.duplicates == "keep":
        return plan
    previous = read_plan(series.plan_uri())
    names = ("duplicates", "duplicate_threshold")
    same = all(getattr(previous.parameters, name) == getattr(plan.parameters, name) for name in names)
    same &= [replace(shard, without=None) for shard in previous.shards] == list(plan.shards)
    same &= [digests.sign_digest(previous, s) for s in previous.shards] == [
        digests.sign_digest(plan, s) for s in plan.shards
    ]
    return replace(plan, shards=previous.shards, deduplicated=True) if same and previous.deduplicated else plan


def with_base(plan: Plan, series: history.Series) -> Plan:
    """``plan`` with the current version as its base, if it can be one; the log says why not."""
    if not series.current:
        return plan
    base, why = published_base(plan, series)
    say(f"plan: starts from {why}" if base else f"plan: {why}", logging.INFO if base else logging.WARNING)
    return replace(plan, base=base)
