"""The files of a version, from its own specs and manifest, which works for versions of any code version."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.plan import SPLITS, Split
from retro_ops.plan.specs import (
    DatasetSpec,
    IndexShard,
    dataset_spec_from_json,
    index_spec_from_json,
)
from retro_ops.storage import read_ahead, store
from retro_ops.uris import join, parent
from retro_ops.versions import history


@dataclass(frozen=True)
class SplitFiles:
    """The specs of a split, with the names of their shards in the same order."""

    dataset: DatasetSpec
    index: tuple[IndexShard, ...]
    queried: tuple[str, ...]
    indexed: tuple[str, ...]


@dataclass(frozen=True)
class VersionFiles:
    """A version. ``splits`` lacks the splits without queried shards."""

    manifest: dict[str, Any]
    splits: dict[Split, SplitFiles]


def read(folder: str) -> VersionFiles:
    """The version in ``folder``, which may also be an exported folder. Raises BadInputError if a file is damaged."""
    manifest = history.manifest(folder)
    splits: dict[Split, SplitFiles] = {}
    for split in SPLITS:
        if queried := history.names_of_queries(manifest, split):
            dataset, index = read_specs(paths.dataset_spec_in(folder, split))
            names = history.names_of_index(manifest, split)
            if (len(index), len(dataset.shards)) != (len(names), len(queried)):
                raise BadInputError(
                    f"the specs of {split} in {folder} and its manifest list different shards",
                    "the version is damaged: run `retro-ops validate`",
                )
            splits[split] = SplitFiles(dataset, index, tuple(queried), tuple(names))
    return VersionFiles(manifest, splits)


def read_specs(uri: str) -> tuple[DatasetSpec, tuple[IndexShard, ...]]:
    """The dataset spec at ``uri`` and its index spec."""
    dataset = dataset_spec_from_json(store.read(uri), uri)
    return dataset, index_spec_from_json(store.read(dataset.index_spec), dataset.index_spec)


def checksums(uris: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Length (``bytes``) and ``sha256`` by URI, of the outputs that the reports in the folders of ``uris`` list."""
    reports = {join(parent(uri), paths.REPORT) for uri in uris}
    contents = read_ahead.side_by_side(report.read, sorted(reports))
    return {output["uri"]: output for content in contents if content for output in content["outputs"]}


def name_of(chunks: str) -> str:
    """Name of a shard from its file: ``…/00_a.chunks.npy`` -> ``00_a``; of a ``chunks.npy``, that of its folder."""
    folder, _, file = chunks.rpartition("/")
    stem = file.removesuffix(".npy").removesuffix(".chunks")
    return folder.rpartition("/")[2] if stem == "chunks" else stem
