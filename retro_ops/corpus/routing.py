"""Where a document goes: its category, its split, and the number of its shard."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wcmatch import glob

from retro_ops.plan.plan import Split

Record = Mapping[str, Any]

Place = tuple[Split, str]
"""Split and category."""


@dataclass(frozen=True)
class Fixed:
    """Always the same."""

    value: str


@dataclass(frozen=True)
class ByField:
    """By the value of a field; documents with another one, or without the field, are left out."""

    field: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class ByPath:
    """By the first pattern that the path of the file matches."""

    patterns: Mapping[str, str]


@dataclass(frozen=True)
class ByHash:
    """``val``: share of documents for validation. ``id``: the field that decides; without it the text does."""

    val: float
    id: str | None = None
    seed: str = "0"


@dataclass(frozen=True)
class Cut:
    """How large a shard may become: everything of a file, or so many documents or bytes of it."""

    by: Literal["file", "documents", "bytes"] = "file"
    size: int = 0


@dataclass(frozen=True)
class LeftOut:
    """Why a document goes nowhere."""

    reason: str


def field(record: Record, name: str) -> Any:
    """``meta.pile_set_name`` of a record, or None. A key that holds the dots itself comes first."""
    if name in record:
        return record[name]
    found: Any = record
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def as_text(value: Any) -> str:
    """A value as a recipe writes it: ``1``, ``true``, ``Wikipedia (en)``."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def by_field(rule: ByField, record: Record) -> str | LeftOut:
    found = field(record, rule.field)
    if found is None:
        return LeftOut(f"no {rule.field}")
    text = as_text(found)
    return rule.values.get(text) or LeftOut(f"{rule.field}: {text[:100]}")


def by_path(rule: ByPath, path: str) -> str | LeftOut:
    """``path``: written as the patterns are."""
    for pattern, value in rule.patterns.items():
        if glob.globmatch(path, pattern, flags=glob.GLOBSTAR | glob.BRACE | glob.FORCEUNIX):
            return value
    return LeftOut(f"no pattern for {path}")


def by_hash(rule: ByHash, record: Record, text: str) -> Split:
    """The same side for the same document, whatever else there is; a larger share only moves some to ``val``."""
    found = field(record, rule.id) if rule.id else None
    key = text if found is None else as_text(found)
    hashed = hashlib.blake2b(f"{rule.seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(hashed) < rule.val * 2**64 else "train"


def place(
    category: Fixed | ByField | ByPath, split: Fixed | ByField | ByHash, record: Record, text: str, path: str
) -> Place | LeftOut:
    """Split and category of a document that was found at ``path``."""
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


class Counter:
    """Numbers the shards of one place in one file: from 0, each full before the next begins."""

    def __init__(self, cut: Cut, max_documents: int | None) -> None:
        self._cut, self._limit = cut, max_documents
        self._in_shard = self._documents = self._number = 0

    def next(self, size_bytes: int) -> int | None:
        """Number of the shard of the next document; None when the limit is reached."""
        if self._limit is not None and self._documents >= self._limit:
            return None
        step = {"file": 0, "documents": 1, "bytes": size_bytes}[self._cut.by]
        # A document larger than a shard has one to itself.
        if self._in_shard and self._in_shard + step > self._cut.size and self._cut.by != "file":
            self._number, self._in_shard = self._number + 1, 0
        self._in_shard += step
        self._documents += 1
        return self._number
