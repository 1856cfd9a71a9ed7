"""Copies a published version to plain files with the original's names, which a trainer can memory-map."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS, Split
from retro_ops.plan.specs import (
    DatasetShard,
    DatasetSpec,
    IndexShard,
    dataset_spec_from_json,
    dataset_spec_to_json,
    index_spec_from_json,
    index_spec_to_json,
)
from retro_ops.progress import Progress, say
from retro_ops.storage import read_ahead, store
from retro_ops.uris import join, parent, resolve
from retro_ops.versions import history

STAGE = "export"
COPY_BYTES = 8 * 2**20

RETRIEVER = "retriever_sentence_transformer"
"""Folder that the original uses for embeddings, neighbours and indexes of a sentence-transformer."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix of all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--version", type=int, help="number of a version (default: the current one)")
    parser.add_argument("--to", required=True, help="folder to copy to; files that it already has are not copied again")


def run(arguments: Namespace, parameters: Parameters) -> None:
    to = arguments.to.rstrip("/")
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    number, folder = series.entry(arguments.version)["version"], series.folder(arguments.version)
    version = _read(folder)
    places = {uri: join(to, name) for uri, name in version.names.items()}
    sums = _written(folder, places)
    progress = Progress(STAGE, sum(sums[uri]["bytes"] for uri in places), "bytes")

    def copy(uri: str) -> bool:
        is_new = _copy(uri, places[uri], sums[uri]["sha256"])
        progress.advance(sums[uri]["bytes"])
        return is_new

    copied = sum(read_ahead.side_by_side(copy, places, read_ahead.READERS))
    progress.close()
    # Last, so that a spec never refers to files that are not there yet.
    for split, spec in version.datasets.items():
        _write_specs(split, spec, version.indexes[split], places, to)
    say(f"{STAGE}: version {number} of {arguments.dataset}: {len(places):,} files, {copied:,} of them new: {to}")


@dataclass(frozen=True)
class _Version:
    """The files of a version, from its own specs, which work for versions of any code version."""

    datasets: dict[Split, DatasetSpec]
    indexes: dict[Split, tuple[IndexShard, ...]]
    names: dict[str, str]
    """URI of each file -> its name in the exported folder."""


def _read(folder: str) -> _Version:
    manifest_uri = paths.manifest_in(folder)
    manifest = json.loads(store.read(manifest_uri))
    datasets: dict[Split, DatasetSpec] = {}
    indexes: dict[Split, tuple[IndexShard, ...]] = {}
    names = {
        manifest_uri: "manifest.json",
        paths.card_in(folder, "html"): "card.html",
        paths.card_in(folder, "json"): "card.json",
        resolve(manifest["trained_index"], manifest_uri): f"{RETRIEVER}/{manifest['index_type']}.index",
    }

    def add(name: str, shard: IndexShard | DatasetShard) -> None:
        for kind in ("chunks", "seq2chunk", "chunk2seq"):
            names[getattr(shard, kind)] = f"chunk_shards/{name}.{kind}.npy"
        if isinstance(shard, IndexShard):
            names[shard.embeddings] = f"{RETRIEVER}/embeddings/{name}.embeddings.npy"
        else:
            names[shard.neighbours] = f"{RETRIEVER}/neighbours/{name}.neighbours.npy"
            names[paths.distances_uri(shard.neighbours)] = f"{RETRIEVER}/neighbours/{name}.distances.npy"

    for split in SPLITS:
        queries = history.names_of_queries(manifest, split)
        if not queries:
            continue
        uri = paths.dataset_spec_in(folder, split)
        spec = datasets[split] = dataset_spec_from_json(store.read(uri), uri)
        indexes[split] = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
        names[spec.faiss_index] = f"{RETRIEVER}/{split}.index"
        for name, entry in zip(history.names_of_index(manifest, split), indexes[split], strict=True):
            add(name, entry)
        for name, shard in zip(queries, spec.shards, strict=True):
            add(name, shard)
    for name, uri in history.embeddings_of_others(manifest, manifest_uri).items():
        names[uri] = f"{RETRIEVER}/embeddings/{name}.embeddings.npy"
    return _Version(datasets, indexes, names)


def _written(folder: str, uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Length and checksum of every file, from the reports. Raises BadInputError for a file that is in no report."""
    reports = {join(parent(uri), paths.REPORT) for uri in uris} | {paths.report_in(folder, "describe")}
    contents = read_ahead.side_by_side(report.read, sorted(reports))
    sums = {output["uri"]: output for content in contents if content for output in content["outputs"]}
    for uri in uris:
        if uri not in sums:
            raise BadInputError(
                f"no report lists {uri}, so its checksum is unknown", "run the stage that writes it again"
            )
    return sums


def _copy(uri: str, target: str, sha256: str) -> bool:
    """Copy a file and check its checksum. Returns False if ``target`` was already there.

    Raises BadInputError, and leaves no copy, if ``uri`` is not what its stage wrote.
    """
    if store.exists(target) and store.sha256(target) == sha256:
        return False
    with store.create(target) as writer, store.open_stream(uri) as source:
        while data := source.read(COPY_BYTES):
            writer.write(data)
        written = writer.close()
    if written.sha256 != sha256:
        store.at(target).delete(target)
        raise BadInputError(f"{uri} is not what its stage wrote (SHA-256 differs)", "run `retro-ops validate`")
    return True


def _write_specs(
    split: Split, spec: DatasetSpec, index: Sequence[IndexShard], places: Mapping[str, str], to: str
) -> None:
    def moved(shard: IndexShard | DatasetShard) -> dict[str, str]:
        return {key: places[uri] for key, uri in asdict(shard).items()}

    index_spec = join(to, RETRIEVER, f"{split}.index.spec.json")
    store.write(index_spec, index_spec_to_json([IndexShard(**moved(s)) for s in index], index_spec).encode())
    uri = paths.dataset_spec_in(to, split)
    shards = tuple(DatasetShard(**moved(shard)) for shard in spec.shards)
    store.write(uri, dataset_spec_to_json(DatasetSpec(shards, places[spec.faiss_index], index_spec), uri).encode())
