"""Braces of patterns: a list ``{a,b}`` or a range ``{00..29}``, expanded within bounds.

Every pattern of the package is expanded here, whether it comes from a flag, a form, a recipe or a plan, so that none
takes minutes or all memory. The bounds are far above what anyone writes by hand.
"""

import re
from collections.abc import Collection

import bracex

LONGEST_PATTERN = 20_000
"""Limit on the characters of a pattern."""

MOST_BRACES = 60
"""Limit on its braces, and on those of all patterns in one text."""

MOST_BRACKETS = 100
"""Limit on ``[``. The libraries look for the end of each, so thousands that have none take minutes."""

MOST_NAMES = 20_000
"""Limit on the names that the braces of a pattern expand to."""

MOST_PATTERNS = 2000
"""Limit on those of them that hold ``*``, ``?`` or ``[``: each is compiled, for a hundred times the cost of a name."""

MOST_CHARACTERS = 50_000_000
"""Limit on the characters of all names together."""

MOST_COMPILED = 250_000
"""Limit on the characters of all patterns together."""

MAGIC = re.compile(r"[*?\[\\]")


def expand(pattern: str) -> list[str]:
    """The names and patterns without braces that ``pattern`` expands to. ValueError, with the reason, above a bound."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"it has more than {LONGEST_PATTERN:,} characters")
    for what, most in (("{", MOST_BRACES), ("[", MOST_BRACKETS)):
        if pattern.count(what) > most:
            raise ValueError(f"it has more than {most} times {what}")
    most = min(MOST_NAMES, MOST_CHARACTERS // max(1, len(pattern)))
    try:
        names = bracex.expand(pattern, keep_escapes=True, limit=most)
    except RecursionError:
        raise ValueError("its braces are nested too deep") from None
    except bracex.ExpansionLimitException:
        raise ValueError(f"its braces expand to more than {most:,} names") from None
    patterns = [name for name in names if MAGIC.search(name)]
    if len(patterns) > MOST_PATTERNS or (len(patterns) > 1 and sum(map(len, patterns)) > MOST_COMPILED):
        raise ValueError(
            f"its braces expand to more than {MOST_PATTERNS:,} patterns, or {MOST_COMPILED:,} characters of patterns"
        )
    return list(names)


def plain_and_patterns(names: Collection[str]) -> tuple[frozenset[str], list[str]]:
    """What ``expand`` gave, divided into plain names and patterns, each once."""
    patterns = dict.fromkeys(filter(MAGIC.search, names))
    return frozenset(names) - patterns.keys(), list(patterns)
