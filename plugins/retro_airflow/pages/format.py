"""Numbers, times and sizes as the pages show them."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from retro_ops.sizes import in_words

NONE = "\u2013"
"""Shown for a value that does not exist."""

SPANS = ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h"))
"""(limit in seconds, length of the unit in seconds, its name): the first unit whose limit is larger is used."""


def number(value: int | float | None) -> str:
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def share(value: float | None) -> str:
    """``0.9756`` -> ``97.6 %``."""
    return NONE if value is None else f"{100 * value:.1f} %"


def size(count: float | None) -> str:
    return NONE if count is None else in_words(count)


def seconds(count: float | None) -> str:
    """``5400`` -> ``1.5 h``."""
    if count is None:
        return NONE
    unit, name = next(((unit, name) for limit, unit, name in SPANS if count < limit), (86400, "days"))
    return f"{count / unit:.{0 if count >= 10 * unit else 1}f} {name}"


def age(moment: str | float | None) -> str:
    """Time since ``moment`` (ISO 8601, or seconds since 1970): ``3.2 h ago``."""
    return NONE if moment is None else f"{seconds(max(0.0, time.time() - _stamp(moment)))} ago"


def day(moment: str | float | None) -> str:
    """``2026-03-02 14:05 UTC``."""
    return NONE if moment is None else datetime.fromtimestamp(_stamp(moment), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _stamp(moment: str | float) -> float:
    return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else moment


def line(values: Sequence[float | None], width: int = 240, height: int = 48) -> str:
    """Points of an SVG polyline through ``values``, from their minimum at the bottom to their maximum at the top."""
    known = [(i, value) for i, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    step, scale = (width - 8) / (len(values) - 1), (height - 8) / ((high - low) or 1)
    return " ".join(f"{4 + i * step:.1f},{height - 4 - (value - low) * scale:.1f}" for i, value in known)
