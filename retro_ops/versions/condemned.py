"""The digests of damaged outputs, which are never used again."""

import json
from collections.abc import Iterable
from typing import TypedDict

from retro_ops.plan import documents, paths
from retro_ops.storage import store


class _Document(TypedDict):
    digests: list[str]


def _digests(data: bytes, uri: str) -> list[str]:
    digests: list[str] = documents.read(data, uri, _Document)["digests"]
    return digests


def read_condemned(root: str, dataset: str) -> tuple[str, ...]:
    """Digests of all outputs of the dataset that were found damaged."""
    uri = paths.condemned_uri(root, dataset)
    stored = store.at(root).read_tagged(uri)
    return tuple(_digests(stored[0], uri)) if stored else ()


def condemn(root: str, dataset: str, digests: Iterable[str]) -> None:
    """Add ``digests`` to the damaged outputs. Raises ConflictError if another process changed the list meanwhile."""
    uri = paths.condemned_uri(root, dataset)
    stored = store.at(uri).read_tagged(uri)
    known = _digests(stored[0], uri) if stored else []
    wanted = list(dict.fromkeys([*known, *digests]))
    if wanted != known:
        data = json.dumps({"format": 1, "digests": wanted}, indent=1) + "\n"
        store.at(uri).write_if(uri, data.encode(), stored[1] if stored else None)
