"""Reads the figures of a dataset card."""

from typing import Any, NotRequired, TypedDict

from retro_ops.plan import documents, series
from retro_ops.storage import store


class _Index(TypedDict):
    imbalance: float


class _Figures(TypedDict):
    recall: float
    fill_rate: float
    near_duplicate: float
    leaked: float
    index: NotRequired[_Index]


class _Totals(TypedDict):
    stored_bytes: int


class _Document(TypedDict):
    quality: dict[str, _Figures]
    totals: _Totals


def quality(uri: str) -> dict[str, dict[str, Any]]:
    """Figures by split of the card (JSON) at ``uri``. BadInputError if it is no card."""
    found: dict[str, dict[str, Any]] = _read(uri)["quality"]
    return found


def published_figures(uri: str) -> dict[str, Any]:
    """The figures of the card (JSON) at ``uri`` that ``current.json`` repeats. BadInputError if it is no card."""
    return series.card_figures(_read(uri))


def _read(uri: str) -> dict[str, Any]:
    return dict(documents.read(store.read(uri), uri, _Document, "run `retro-ops describe` again"))
