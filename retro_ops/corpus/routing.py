"""Decides the category, the split and the shard number of a document."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from retro_ops.corpus.path_patterns import matcher
from retro_ops.plan.plan import Split

Record = Mapping[str, Any]

Place = tuple[Split, str]
"""Split and category."""


@dataclass(frozen=True)
class Fixed:
    """The same value for every document."""

    value: str


@dataclass(frozen=True)
class ByField:
    """A value chosen by a field; documents with an unlisted value or without the field are left out."""

    field: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class ByPath:
    """A value chosen by the first pattern that the path of the file matches."""

    patterns: Mapping[str, str]


@dataclass(frozen=True)
class ByHash:
    """A split chosen by a hash of the document."""

    val: float
    """Share of documents for validation."""
    id: str | None = None
    """Field to hash; None for the text."""
    seed: str = "0"


@dataclass(frozen=True)
class Cut:
    """Limit on the size of a shard: a whole file, a number of documents or a number of bytes."""

    by: Literal["file", "documents", "bytes"] = "file"
    size: int = 0


@dataclass(frozen=True)
class LeftOut:
    """The reason why a document goes to no shard."""

    reason: str


def field_value(record: Record, name: str) -> Any:
    """The value at a dotted name such as ``meta.pile_set_name``, or None. A key that itself has the dots wins."""
    if name in record:
        return record[name]
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def as_text(value: Any) -> str:
    """A value in the notation of a recipe: ``1``, ``true``, ``Wikipedia (en)``."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def by_field(rule: ByField, record: Record) -> str | LeftOut:
    """The value for ``record``, or the reason why there is none."""
    value = field_value(record, rule.field)
    if value is None:
        return LeftOut(f"no {rule.field}")
    text = as_text(value)
    return rule.values.get(text) or LeftOut(f"{rule.field}: {text[:100]}")


def by_path(rule: ByPath, path: str) -> str | LeftOut:
    """The value for a file, or the reason why there is none. ``path`` must be resolved like the patterns."""
    for pattern, value in rule.patterns.items():
        if matcher(pattern)(path):
            return value
    return LeftOut(f"no pattern for {path}")


def by_hash(rule: ByHash, record: Record, text: str) -> Split:
    """The split of a document. It depends on nothing else, and a larger ``val`` only moves documents to ``val``."""
    value = field_value(record, rule.id) if rule.id else None
    key = text if value is None else as_text(value)
    hashed = hashlib.blake2b(f"{rule.seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(hashed) < rule.val * 2**64 else "train"


def place(
    category: Fixed | ByField | ByPath, split: Fixed | ByField | ByHash, record: Record, text: str, path: str
) -> Place | LeftOut:
    """Split and category of a document from the file ``path``, or the reason why it is left out."""
    if isinstance(category, Fixed):
        kind: str | LeftOut = category.value
    else:
        kind = by_field(category, record) if isinstance(category, ByField) else by_path(category, path)
    if isinstance(kind, LeftOut):
        return kind
    if isinstance(split, ByHash):
        return by_hash(split, record, text), kind
    side = split.value if isinstance(split, Fixed) else by_field(split, record)
    return side if isinstance(side, LeftOut) else (side, kind)  # type: ignore[return-value]


class ShardCounter:
    """Numbers the shards of one split and category in one file from 0; each is filled before the next begins."""

    def __init__(self, cut: Cut, max_documents: int | None) -> None:
        self._cut, self._limit = cut, max_documents
        self._in_shard = self._documents = self._number = 0

    def next(self, size_bytes: int) -> int | None:
        """Shard number of the next document; None when ``max_documents`` is reached."""
        if self._limit is not None and self._documents >= self._limit:
            return None
        step = {"file": 0, "documents": 1, "bytes": size_bytes}[self._cut.by]
        # A document larger than the limit gets a shard of its own.
        if self._in_shard and self._in_shard + step > self._cut.size and self._cut.by != "file":
            self._number, self._in_shard = self._number + 1, 0
        self._in_shard += step
        self._documents += 1
        return self._number
