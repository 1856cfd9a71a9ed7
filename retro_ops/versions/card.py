"""Reads the figures of a dataset card."""

from typing import Any

from retro_ops.plan.card import figures, read_card
from retro_ops.storage import store


def quality(uri: str) -> dict[str, dict[str, Any]]:
    """Figures by split of the card (JSON) at ``uri``. BadInputError if it is no card."""
    found: dict[str, dict[str, Any]] = read_card(store.read(uri), uri)["quality"]
    return found


def published_figures(uri: str) -> dict[str, Any]:
    """The figures of the card (JSON) at ``uri`` that ``current.json`` repeats. BadInputError if it is no card."""
    return figures(read_card(store.read(uri), uri))
