"""Plain files with the original's names, which a trainer can memory-map."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from retro_ops.export.record import ExportRecord
from retro_ops.export.version import ExportVersion
from retro_ops.plan import paths
from retro_ops.plan.plan import Split
from retro_ops.plan.specs import (
    DatasetShard,
    DatasetSpec,
    IndexShard,
    dataset_spec_to_json,
    index_spec_to_json,
)
from retro_ops.progress import Progress
from retro_ops.storage import read_ahead, store
from retro_ops.storage.checked import copy
from retro_ops.uris import join, resolve
from retro_ops.versions import history
from retro_ops.versions.version_files import SplitFiles

RETRIEVER = "retriever_sentence_transformer"
"""Folder that the original uses for embeddings, neighbours and indexes of a sentence-transformer."""

CHUNKS = "chunk_shards"


def export(version: ExportVersion, record: ExportRecord, chosen: Collection[str], *, only_trainer: bool) -> int:
    """Copy the files, and write the specs. Returns the number of files that were copied.

    Neighbours are those of the shards ``chosen``; chunks are those of the whole index, which neighbours refer to.
    ``only_trainer``: without index and embeddings, which the specs still name.
    """
    splits = {split: _of_chosen(files, chosen) for split, files in version.files.splits.items()}
    splits = {split: files for split, files in splits.items() if files.dataset.shards}
    names = _names(version, splits)
    places = {uri: join(record.to, name) for uri, name in names.items()}
    wanted = {uri: name for uri, name in names.items() if not (only_trainer and _is_of_retriever(name))}
    progress = Progress("export", sum(version.sums[uri]["bytes"] for uri in wanted if version.sum(uri)), "bytes")

    def copied(uri: str) -> bool:
        sha256 = version.sum(uri)
        is_new = record.ensure(wanted[uri], [sha256], partial(copy, uri, sha256=sha256))
        progress.advance(version.sums[uri]["bytes"])
        return is_new

    new = sum(read_ahead.side_by_side(copied, wanted, read_ahead.READERS))
    progress.close()
    if stored := version.stored_tokenizer():
        new += record.ensure(
            "tokenizer.json", [store.sha256(stored)], lambda target: store.write(target, store.read(stored))
        )
    manifest = (json.dumps(_manifest(version, splits, names), indent=1) + "\n").encode()
    new += record.ensure("manifest.json", [manifest.decode()], lambda target: store.write(target, manifest))
    # Last, so that a spec never refers to files that are not there yet.
    for split, files in splits.items():
        _write_specs(split, files, places, record.to)
    return new


def _of_chosen(files: SplitFiles, chosen: Collection[str]) -> SplitFiles:
    kept = [(n, s) for n, s in zip(files.queried, files.dataset.shards, strict=True) if n in chosen]
    dataset = replace(files.dataset, shards=tuple(shard for _, shard in kept))
    return replace(files, dataset=dataset, queried=tuple(name for name, _ in kept))


def _is_of_retriever(name: str) -> bool:
    """Whether only retrieval reads the file: an index or embeddings."""
    return name.endswith((".index", ".embeddings.npy"))


def _names(version: ExportVersion, splits: Mapping[Split, SplitFiles]) -> dict[str, str]:
    """URI of each file -> its name in the exported folder."""
    manifest, manifest_uri = version.files.manifest, paths.manifest_in(version.folder)
    names = {
        paths.card_in(version.folder, "html"): "card.html",
        paths.card_in(version.folder, "json"): "card.json",
        resolve(manifest["trained_index"], manifest_uri): f"{RETRIEVER}/{manifest['index_type']}.index",
    }

    def add(name: str, shard: IndexShard | DatasetShard) -> None:
        for kind in ("chunks", "seq2chunk", "chunk2seq"):
            names[getattr(shard, kind)] = f"{CHUNKS}/{name}.{kind}.npy"
        for uri in (paths.documents_uri(shard.chunks), paths.document_ids_uri(shard.chunks)):
            if uri in version.sums:
                names[uri] = f"{CHUNKS}/{name}.{uri.rpartition('/')[2]}"
        if isinstance(shard, IndexShard):
            names[shard.embeddings] = f"{RETRIEVER}/embeddings/{name}.embeddings.npy"
        else:
            names[shard.neighbours] = f"{RETRIEVER}/neighbours/{name}.neighbours.npy"
            names[paths.distances_uri(shard.neighbours)] = f"{RETRIEVER}/neighbours/{name}.distances.npy"

    for split, files in splits.items():
        names[files.dataset.faiss_index] = f"{RETRIEVER}/{split}.index"
        for name, entry in zip(files.indexed, files.index, strict=True):
            add(name, entry)
        for name, shard in zip(files.queried, files.dataset.shards, strict=True):
            add(name, shard)
    queried = {name for files in splits.values() for name in files.queried}
    for name, uri in history.embeddings_of_others(manifest, manifest_uri).items():
        if name in queried:
            names[uri] = f"{RETRIEVER}/embeddings/{name}.embeddings.npy"
    return names


def _manifest(version: ExportVersion, splits: Mapping[Split, SplitFiles], names: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of the version, as it is true of the exported folder."""
    manifest, uri = version.files.manifest, paths.manifest_in(version.folder)
    queried = {name for files in splits.values() for name in files.queried}
    shards = []
    for shard in manifest["shards"]:
        of_export = {**shard, "queried": shard["name"] in queried}
        if "embeddings" in shard:
            of_export["embeddings"] = names.get(resolve(shard["embeddings"], uri), "")
        if of_export["queried"] or shard.get("indexed", True):
            shards.append(of_export)
    return {**manifest, "trained_index": names[resolve(manifest["trained_index"], uri)], "shards": shards}


def _write_specs(split: Split, files: SplitFiles, places: Mapping[str, str], to: str) -> None:
    def moved(shard: IndexShard | DatasetShard) -> dict[str, str]:
        return {key: places[uri] for key, uri in asdict(shard).items()}

    index_spec = join(to, RETRIEVER, f"{split}.index.spec.json")
    store.write(index_spec, index_spec_to_json([IndexShard(**moved(s)) for s in files.index], index_spec).encode())
    uri = paths.dataset_spec_in(to, split)
    shards = tuple(DatasetShard(**moved(shard)) for shard in files.dataset.shards)
    spec = DatasetSpec(shards, places[files.dataset.faiss_index], index_spec)
    store.write(uri, dataset_spec_to_json(spec, uri).encode())
