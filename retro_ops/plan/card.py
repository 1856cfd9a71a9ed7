"""What other modules read of a dataset card, which `describe` writes."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from retro_ops.plan import documents

FIGURES = ("recall", "fill_rate", "near_duplicate", "leaked")
"""Figures of the card that compare versions, for each split."""


class _Index(TypedDict):
    imbalance: float


class _Figures(TypedDict):
    recall: float
    fill_rate: float
    near_duplicate: float
    leaked: float
    index: NotRequired[_Index]


class _Totals(TypedDict):
    documents: NotRequired[int]
    chunks: NotRequired[int]
    source_bytes: NotRequired[int]
    stored_bytes: int


class _Document(TypedDict):
    quality: dict[str, _Figures]
    totals: _Totals


def read_card(data: bytes, uri: str) -> dict[str, Any]:
    """The card (JSON) at ``uri``. BadInputError if it is none."""
    return dict(documents.read(data, uri, _Document, "run `retro-ops describe` again"))


def figures(card: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that ``current.json`` repeats, so that a list of versions needs no other file."""
    quality = {split: {name: round(of[name], 4) for name in FIGURES} for split, of in card["quality"].items()}
    return {"stored_bytes": card["totals"]["stored_bytes"], "quality": quality}
