"""What a new version may use of the published one, and what is known to be damaged."""

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
"""Parameters that name something: what counts is the content, in the identity, not the name."""


def published_base(plan: Plan, series: history.Series) -> tuple[Base | None, str]:
    """The current version as the base of ``plan``, or None and why it cannot be one.

    From the version's own specs and manifest, so that it holds whatever code made them.
    """
    version, number = series.folder(), series.current
    manifest_uri = paths.manifest_in(version)
    manifest = history.manifest(version)
    if changed := _changed(plan, manifest, DECIDE_THE_INDEX) or _other_code(manifest, MAKE_THE_INDEX):
        return None, f"{changed} differ from version {number}, so everything is built again"
    digest = _digest_of_folder(resolve(manifest["trained_index"], manifest_uri))
    if digest in plan.condemned:
        return None, f"the trained index of version {number} was found damaged, so another one is trained"
    queried = {split: names for split in SPLITS if (names := history.names_of_queries(manifest, split))}
    same_search = not (
        plan.parameters.profile == "seed"
        or _changed(plan, manifest, DECIDE_THE_NEIGHBOURS)
        or _other_code(manifest, ("retrieve-neighbours",))
    )
    others = history.embeddings_of_others(manifest, manifest_uri)
    embeddings = {name: _digest_of_folder(uri) for name, uri in others.items()}
    neighbours: dict[str, str] = {}
    index = None  # Nobody merged a training index if no training shard was queried.
    for split, names in queried.items():
        spec_uri = paths.dataset_spec_in(version, split)
        spec = dataset_spec_from_json(store.read(spec_uri), spec_uri)
        index = _digest_of_folder(spec.faiss_index) if split == "train" else index
        indexed = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
        of_indexed = (_digest_of_folder(shard.embeddings) for shard in indexed)
        embeddings |= zip(history.names_of_index(manifest, split), of_indexed, strict=True)
        neighbours |= zip(names, (_digest_of_folder(shard.neighbours) for shard in spec.shards), strict=True)
    usable = {name: of for name, of in neighbours.items() if same_search and of not in plan.is_condemned}
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
    former = manifest.get("tuning")
    same_tuning = not (_changed(plan, manifest, DECIDE_THE_TUNING) or _other_code(manifest, ("tune-search",)))
    same_tuning &= set(plan.splits()) <= set(queried)  # Each split has a width of its own.
    base = Base(
        version=relative(version, parent(series.uri)),
        trained=digest,
        index=None if index in plan.condemned else index,
        tuning=former if same_tuning and former not in plan.condemned else None,
        shards=shards,
    )
    return base, f"version {number}"


def _changed(plan: Plan, manifest: Mapping[str, Any], names: Iterable[str]) -> str:
    """Which of the parameters ``names`` differ from those of ``manifest``; one that is not there had its default."""
    before = {field.name: field.default for field in fields(Parameters)} | dict(manifest["parameters"])
    changed = [n for n in names if n not in STANDS_FOR and before[n] != getattr(plan.parameters, n)]
    known = manifest["identity"]
    changed += [n for n, key in STANDS_FOR.items() if n in names and known[key] != getattr(plan.identity, key)]
    return ", ".join(changed)


def _other_code(manifest: Mapping[str, Any], stages: Iterable[str]) -> str:
    """Which of ``stages`` made other bytes when the version was made; one that is not there was as it is now."""
    known = manifest.get("code_versions") or {}
    return ", ".join(stage for stage in stages if known.get(stage) not in (None, digests.CODE_VERSIONS[stage]))


def _digest_of_folder(uri: str) -> str:
    """``…/embed-chunks-0123456789abcdef/embeddings.npy`` -> ``0123456789abcdef``."""
    return parent(uri).rpartition("-")[2]


def known_duplicates(plan: Plan, series: history.Series) -> Plan:
    """With the records that the published version is without, if nothing changed that could change them."""
    if not series.current or plan.parameters.duplicates == "keep":
        return plan
    former = read_plan(series.plan_uri())
    of_parameters = ("duplicates", "duplicate_threshold")
    same = all(getattr(former.parameters, name) == getattr(plan.parameters, name) for name in of_parameters)
    same &= [replace(shard, without=None) for shard in former.shards] == list(plan.shards)
    same &= [digests.sign_digest(former, s) for s in former.shards] == [
        digests.sign_digest(plan, s) for s in plan.shards
    ]
    return replace(plan, shards=former.shards, deduplicated=True) if same and former.deduplicated else plan


def with_base(plan: Plan, series: history.Series) -> Plan:
    if not series.current:
        return plan
    base, why = published_base(plan, series)
    say(f"plan: starts from {why}" if base else f"plan: {why}", logging.INFO if base else logging.WARNING)
    return replace(plan, base=base)
