"""Decides which outputs of the published version a new version may reuse."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, views
from retro_ops.plan.parameters import PARAMETERS, Parameters
from retro_ops.plan.plan import SPLITS, Base, BaseShard, Plan, Shard, Source
from retro_ops.plan.specs import dataset_spec_from_json, index_spec_from_json
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.uris import parent, relative, resolve
from retro_ops.versions import history

NAMED_IN_IDENTITY = {"tokenizer": "tokenizer_digest", "model": "model_digest", "pad_id": "pad_id"}
"""Parameters whose effect is recorded in the identity: the content counts, not the name."""

TRAINING = "train-faiss-index"

PROBE = Shard("probe", "train", (Source("probe", 0, "probe"),))
"""Stands for any shard where the digests of two plans are compared."""


def published_base(plan: Plan, series: history.Series) -> tuple[Base | None, str]:
    """The current version as the base of ``plan``, or None and the reason why it cannot be one.

    Reads the version's own specs and manifest, so it works for versions of any code version.
    """
    version, number = series.folder(), series.current
    manifest_uri = paths.manifest_in(version)
    manifest = history.manifest(version)
    if differing := _differences(plan, manifest, _index_digests):
        return None, f"version {number} has another {', '.join(differing)}, so everything that depends on it is rebuilt"
    digest = _digest_of_folder(resolve(manifest["trained_index"], manifest_uri))
    if digest in plan.condemned:
        return None, f"the trained index of version {number} was found damaged, so a new one is trained"
    queried = {split: names for split in SPLITS if (names := history.names_of_queries(manifest, split))}
    same_search = plan.parameters.profile != "seed" and not _differences(plan, manifest, _searched_digest)
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
    same_tuning = not _differences(plan, manifest, digests.tuning_digest)
    same_tuning &= set(plan.splits()) <= set(queried)  # Each split is tuned separately.
    base = Base(
        version=relative(version, parent(series.uri)),
        trained=digest,
        index=None if index in plan.condemned else index,
        tuning=tuning if same_tuning and tuning not in plan.condemned else None,
        shards=shards,
        keeps=manifest["parameters"].get("keep_neighbours") is not None,
        other_view=same_search and bool(_differences(plan, manifest, _neighbours_digest)),
    )
    return base, f"version {number}"


def _index_digests(plan: Plan) -> list[str]:
    of_shard = digests.partial_index_digest(plan, PROBE)
    return [digests.train_digest(plan), of_shard, digests.index_digest(plan, "train")]


def _neighbours_digest(plan: Plan) -> str:
    return digests.neighbours_digest(plan, PROBE)


def _searched_digest(plan: Plan) -> str:
    """The digest of the search: equal for all views of it."""
    return _neighbours_digest(replace(plan, parameters=views.searched(plan.parameters)))


def _differences(plan: Plan, manifest: Mapping[str, Any], digest_of: Callable[[Plan], Any]) -> list[str]:
    """Parameters, parts of the identity and stages that make ``digest_of`` differ from what it was for ``manifest``.

    It compares digests, so there is no second list that could miss a parameter.
    """
    current = Plan("probe", "probe", plan.parameters, plan.identity, (PROBE,))
    current_training = digests.CODE_VERSIONS[TRAINING]
    known = {name: value for name, value in manifest["parameters"].items() if name in PARAMETERS}
    identity = replace(plan.identity, **manifest["identity"])
    previous = replace(
        current,
        # A parameter or a code version that the manifest does not have was the default, or as it is now.
        parameters=Parameters(**known),
        identity=identity,
        # The base keeps its trained index, however its vectors were sampled; check-drift decides whether it fits.
        code_versions={**digests.CODE_VERSIONS, **(manifest.get("code_versions") or {}), TRAINING: current_training},
    )
    if digest_of(previous) == digest_of(current):
        return []
    changes = {
        **{name: _with_parameter(current, name, getattr(previous.parameters, name)) for name in PARAMETERS},
        **{
            name: replace(current, identity=replace(plan.identity, **{key: getattr(identity, key)}))
            for name, key in NAMED_IN_IDENTITY.items()
        },
        **{
            stage: replace(current, code_versions={**digests.CODE_VERSIONS, stage: version})
            for stage, version in (previous.code_versions or {}).items()
        },
    }
    names = [name for name, changed in changes.items() if digest_of(changed) != digest_of(current)]
    return names or ["the parameters"]


def _with_parameter(plan: Plan, name: str, value: Any) -> Plan:
    return replace(plan, parameters=replace(plan.parameters, **{name: value}))


def _digest_of_folder(uri: str) -> str:
    """``…/embed-chunks-0123456789abcdef/embeddings.npy`` -> ``0123456789abcdef``."""
    return parent(uri).rpartition("-")[2]


def known_duplicates(plan: Plan, series: history.Series) -> Plan:
    """``plan`` with the documents that the published version left out, if a new search would find the same."""
    if not series.current or not plan.parameters.compares_documents:
        return plan
    previous = read_plan(series.plan_uri())
    names = ("duplicates", "duplicate_threshold", "contaminated")  # Benchmarks are in the digest of the signatures.
    same = all(getattr(previous.parameters, name) == getattr(plan.parameters, name) for name in names)
    same &= [replace(shard, without=None, contaminated=None) for shard in previous.shards] == list(plan.shards)
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
