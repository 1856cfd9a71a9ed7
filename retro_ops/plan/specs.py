"""Index spec and dataset spec, the JSON files that RETRO trainers read.

Paths in a spec are relative to its folder. Standard library only, because Airflow imports this module.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from retro_ops.errors import BadInputError
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


def index_spec_to_json(shards: Sequence[IndexShard], uri: str) -> str:
    folder = parent(uri)
    return json.dumps([_relative_fields(s, folder) for s in shards], indent=1) + "\n"


def index_spec_from_json(text: str | bytes, uri: str) -> tuple[IndexShard, ...]:
    """Parse the index spec at ``uri``. Raises BadInputError if it is not one."""
    document = load_json(text, uri)
    if not isinstance(document, list):
        raise BadInputError(f"{uri} is not an index spec: expected a JSON list of shards", "name an index spec")
    return tuple(_shard_fields(IndexShard, entry, uri, i) for i, entry in enumerate(document))


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
    document = load_json(text, uri)
    try:
        neighbours = document["neighbours"]
        return DatasetSpec(
            shards=tuple(_shard_fields(DatasetShard, s, uri, i) for i, s in enumerate(document["shards"])),
            faiss_index=resolve(neighbours["faiss_index"], uri),
            index_spec=resolve(neighbours["index_spec"], uri),
        )
    except (KeyError, TypeError) as error:
        message = f"{uri} is not a dataset spec: {error!r} is missing or has the wrong type"
        raise BadInputError(message, "name a dataset spec, or write it again") from error


def _relative_fields(shard: IndexShard | DatasetShard, folder: str) -> dict[str, str]:
    return {key: relative(value, folder) for key, value in asdict(shard).items()}


def _shard_fields(kind: type[T], entry: Any, uri: str, position: int) -> T:
    names = [f.name for f in fields(kind)]
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(n), str) for n in names):
        message = f"{uri}: shard {position} must be an object with the paths {', '.join(names)}"
        raise BadInputError(message, "name another spec, or write it again")
    return kind(**{n: resolve(entry[n], uri) for n in names})


def load_json(text: str | bytes, uri: str) -> Any:
    """Parse JSON. Raises BadInputError, which names ``uri``, if it is not valid."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadInputError(f"{uri} is not JSON: {error}", "the file is damaged or of another kind") from error
