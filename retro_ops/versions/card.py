"""Reads the figures of a dataset card."""

from typing import Any, NotRequired, TypedDict

from retro_ops.plan import documents
from retro_ops.storage import store


class _Index(TypedDict):
    imbalance: float


class _Figures(TypedDict):
    recall: float
    fill_rate: float
    near_duplicate: float
    leaked: float
    index: NotRequired[_Index]


class _Document(TypedDict):
    quality: dict[str, _Figures]


def quality(uri: str) -> dict[str, dict[str, Any]]:
    """Figures by split of the card (JSON) at ``uri``. BadInputError if it is no card."""
    document = documents.read(store.read(uri), uri, _Document, "run `retro-ops describe` again")
    found: dict[str, dict[str, Any]] = document["quality"]
    return found
