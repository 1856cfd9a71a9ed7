"""Sizes, counts, times and lists of names as people write and read them.

What is measured or estimated (files, memory in use) has decimal units. Limits of memory have binary units, in which
they are set, too: ``--memory-budget 2GiB``.
"""

import functools
import re
from collections.abc import Sequence

from retro_ops.errors import BadInputError

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@functools.lru_cache(64)
def parse_bytes(text: str) -> int:
    """``2GiB`` -> 2147483648. Units: none or B, KiB, MiB, GiB, TiB and kB, MB, GB, TB."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kKMGT]?)(i?)B?\s*", text)
    if not match:
        raise BadInputError(f"{text[:80]!r} is not an amount of memory", "write it like 2GiB or 512MiB")
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


def in_words(count: float) -> str:
    """A measured number of bytes in the decimal unit that suits it: ``35254138`` -> ``35.3 MB``."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:,.1f} {UNITS[power]}" if power else f"{count:,.0f} B"


def counted(count: int, noun: str) -> str:
    """``1 part``, ``2,000 parts``. ``noun``: one whose plural ends in s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def some(names: Sequence[str], most: int = 10) -> str:
    """The first ``most`` of ``names`` and the number of the others: ``a, b and 2,000 more``."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def of_key(count: int, key: str) -> str:
    """A count under its key in a report: ``1``, ``bad_records`` -> ``1 bad record``; ``2``, ``queries``."""
    words = key.replace("_", " ")
    if count == 1:
        words = f"{words[:-3]}y" if words.endswith("ies") else words.removesuffix("s")
    return f"{count:,} {words}"


def time_in_words(seconds: float) -> str:
    """A time in the unit that suits it: ``about 2.5 hours``, ``about 4 minutes``, ``less than a minute``."""
    if seconds >= 3600:
        return f"about {seconds / 3600:,.1f} hours"
    minutes = round(seconds / 60)
    return f"about {counted(minutes, 'minute')}" if minutes else "less than a minute"


def limit_in_words(count: float) -> str:
    """A limit of memory in bytes: ``1610612736`` -> ``1.5 GiB``."""
    return f"{count / 2**30:.1f} GiB"
