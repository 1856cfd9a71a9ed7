"""Index spec and dataset spec, the JSON files that RETRO trainers read.

Paths in a spec are relative to its folder. Standard library only, because Airflow imports this module.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, TypeVar

from retro_ops.plan import documents
from retro_ops.uris import parent, relative, resolve


@dataclass(frozen=True)
class IndexShard:
    """One entry of an index spec, with absolute paths. The order of the entries defines the global chunk ids."""

    chunks: str
    seq2chunk: str
    chunk2seq: str
    embeddings: str


@dataclass(frozen=True)
class DatasetShard:
    """One entry of ``shards`` in a dataset spec, with absolute paths."""

    chunks: str
    seq2chunk: str
    chunk2seq: str
    neighbours: str


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset spec, with absolute paths."""

    shards: tuple[DatasetShard, ...]
    faiss_index: str
    index_spec: str


T = TypeVar("T", IndexShard, DatasetShard)


class _Chunks(TypedDict):
    chunks: str
    seq2chunk: str
    chunk2seq: str


class _IndexEntry(_Chunks):
    embeddings: str


class _DatasetEntry(_Chunks):
    neighbours: str


class _Neighbours(TypedDict):
    faiss_index: str
    index_spec: str


class _DatasetDocument(TypedDict):
    shards: list[_DatasetEntry]
    neighbours: _Neighbours


def index_spec_to_json(shards: Sequence[IndexShard], uri: str) -> str:
    folder = parent(uri)
    return json.dumps([_relative_fields(s, folder) for s in shards], indent=1) + "\n"


def index_spec_from_json(text: str | bytes, uri: str) -> tuple[IndexShard, ...]:
    """Parse the index spec at ``uri``. Raises BadInputError if it is not one."""
    entries = documents.read(text, uri, list[_IndexEntry], "name an index spec, or write it again")
    return tuple(_shard_fields(IndexShard, entry, uri) for entry in entries)


def dataset_spec_to_json(spec: DatasetSpec, uri: str) -> str:
    folder = parent(uri)
    return (
        json.dumps(
            {
                "shards": [_relative_fields(s, folder) for s in spec.shards],
                "neighbours": {
                    "faiss_index": relative(spec.faiss_index, folder),
                    "index_spec": relative(spec.index_spec, folder),
                },
            },
            indent=1,
        )
        + "\n"
    )


def dataset_spec_from_json(text: str | bytes, uri: str) -> DatasetSpec:
    """Parse the dataset spec at ``uri``. Raises BadInputError if it is not one."""
    document = documents.read(text, uri, _DatasetDocument, "name a dataset spec, or write it again")
    return DatasetSpec(
        shards=tuple(_shard_fields(DatasetShard, entry, uri) for entry in document["shards"]),
        faiss_index=resolve(document["neighbours"]["faiss_index"], uri),
        index_spec=resolve(document["neighbours"]["index_spec"], uri),
    )


def _relative_fields(shard: IndexShard | DatasetShard, folder: str) -> dict[str, str]:
    return {key: relative(value, folder) for key, value in asdict(shard).items()}


def _shard_fields(kind: type[T], entry: Mapping[str, Any], uri: str) -> T:
    return kind(**{field.name: resolve(entry[field.name], uri) for field in fields(kind)})
