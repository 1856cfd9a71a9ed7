"""Reads and writes the series of versions of a dataset: one object, which changes only by compare-and-swap."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NotRequired, TypedDict

from retro_ops.errors import BadInputError
from retro_ops.plan import documents, paths
from retro_ops.plan.plan import SPLITS, Plan, Split
from retro_ops.plan.series import Entry as Entry
from retro_ops.plan.series import Series as Series
from retro_ops.plan.series import series_from_json, series_to_json
from retro_ops.plan.specs import dataset_spec_from_json, index_spec_from_json
from retro_ops.storage import store
from retro_ops.uris import parent, resolve


def read(root: str, dataset: str) -> Series:
    """The published versions of a dataset; an empty series if there are none."""
    uri = paths.current_uri(root, dataset)
    return series_from_json(store.at(uri).read_tagged(uri), uri)


def write(series: Series) -> None:
    """Write ``series`` back. Raises ConflictError if another process changed it since it was read."""
    store.at(series.uri).write_if(series.uri, series_to_json(series).encode(), series.tag)


def published(series: Series, entry: Entry, plan: Plan) -> tuple[Series, str]:
    """``series`` with the version ``entry`` (without a number), built by ``plan``, and a log message.

    Raises BadInputError if another run published in the meantime and neither version is known to be newer.
    """
    number = next((known for known, e in series.entries.items() if e["path"] == entry["path"]), 0)
    if number and number == series.current:
        return series, f"version {number} is already the current one"
    overtaken = plan.supersedes not in (None, series.current)
    if overtaken and number > (plan.supersedes or 0):  # Published by this run, or by another with the same result.
        return series, f"version {number} was published earlier, and version {series.current} stays the current one"
    grown, outcome = series, "the current one again"
    if not number:
        number, outcome = series.last + 1, "published"
        grown = replace(series, entries={**series.entries, number: {"version": number, **entry}}, last=number)
    if is_older(plan, series):
        later = series.entry()["as_of"]
        return (
            grown,
            f"version {number} is of {plan.as_of}, so version {series.current} of {later} stays the current one",
        )
    if overtaken and not _is_newer(plan, series):
        meanwhile = series.entry()
        by = meanwhile.get("run", meanwhile["plan"])
        raise BadInputError(
            f"version {series.current} was published meanwhile, at {meanwhile['published_at']} by {by}",
            f"start a new run: it starts from version {series.current} and reuses the outputs of this run",
        )
    return replace(grown, current=number), f"version {number} is {outcome}"


def is_older(plan: Plan, series: Series) -> bool:
    """Whether ``plan`` is of an earlier day than the current version, which then stays the current one."""
    current = series.entries.get(series.current, {}).get("as_of")
    return bool(plan.as_of and current and plan.as_of < current)


def _is_newer(plan: Plan, series: Series) -> bool:
    current = series.entries.get(series.current, {}).get("as_of")
    return bool(plan.as_of and current and plan.as_of > current)


class ManifestShard(TypedDict):
    """A shard in a manifest: as in the plan, with its counts."""

    name: str
    split: Split
    counts: dict[str, int]
    indexed: NotRequired[bool]
    queried: NotRequired[bool]
    embeddings: NotRequired[str]


class Manifest(TypedDict):
    """What is read of a manifest."""

    parameters: dict[str, Any]
    identity: dict[str, str | int]
    trained_index: str
    index_type: str
    shards: list[ManifestShard]
    code_versions: NotRequired[dict[str, int] | None]
    tuning: NotRequired[str | None]


def manifest(folder: str) -> dict[str, Any]:
    """The manifest of the version in ``folder``. Raises BadInputError if it is damaged."""
    uri = paths.manifest_in(folder)
    return dict(documents.read(store.read(uri), uri, Manifest, "repair the dataset with retro_repair"))


def names_of_index(manifest: Mapping[str, Any], split: str) -> list[str]:
    """Names of the shards in the index spec of ``split``, in its order; see ``Plan.indexed``."""
    indexed = [shard for shard in manifest["shards"] if shard.get("indexed", True)]
    splits = ("train",) if split == "train" else ("train", "val")
    return [shard["name"] for name in splits for shard in indexed if shard["split"] == name]


def names_of_queries(manifest: Mapping[str, Any], split: str) -> list[str]:
    """Names of the shards in the dataset spec of ``split``, in its order. If empty, the split has no dataset spec."""
    return [s["name"] for s in manifest["shards"] if s["split"] == split and s.get("queried", True)]


def embeddings_of_others(manifest: Mapping[str, Any], uri: str) -> dict[str, str]:
    """Embeddings of the shards that are in no index spec, by shard name. ``uri``: location of the manifest."""
    others = (shard for shard in manifest["shards"] if not shard.get("indexed", True))
    return {shard["name"]: resolve(shard["embeddings"], uri) for shard in others}


def files(folder: str) -> Iterator[str]:
    """Every file that is named in the specs and the manifest of a version, whichever code wrote it."""
    manifest_uri, of_version = paths.manifest_in(folder), manifest(folder)
    yield manifest_uri
    yield resolve(of_version["trained_index"], manifest_uri)
    yield from embeddings_of_others(of_version, manifest_uri).values()
    for split in (split for split in SPLITS if names_of_queries(of_version, split)):
        uri = paths.dataset_spec_in(folder, split)
        spec = dataset_spec_from_json(store.read(uri), uri)
        yield from (uri, spec.index_spec, spec.faiss_index)
        for entry in index_spec_from_json(store.read(spec.index_spec), spec.index_spec):
            yield from (entry.chunks, entry.seq2chunk, entry.chunk2seq, entry.embeddings)
        for shard in spec.shards:
            yield from (shard.neighbours, paths.distances_uri(shard.neighbours))


def folders(folder: str) -> set[str]:
    """Folders of all files of a version, including its own folder."""
    return {folder, *(parent(uri) for uri in files(folder))}
