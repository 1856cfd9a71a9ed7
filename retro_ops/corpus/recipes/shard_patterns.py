"""Patterns of shard names, one language for recipes, flags and forms.

``*`` is any text, ``?`` a character, ``[ab]`` and ``[!ab]`` are one of, or none of, some characters; case counts.
Braces hold a list ``{docs,code}`` or a range ``{00..08}``. Text without braces means what Python's fnmatch says, as it
did when only that was known, so patterns in plans of earlier versions keep their meaning.
"""

import fnmatch
import itertools
import re
from collections.abc import Iterable

from retro_ops.corpus import braces
from retro_ops.corpus.recipes.patterns import alternatives
from retro_ops.errors import BadInputError
from retro_ops.sizes import some

SHOWN = 200

UNCLEAR = {
    "[^": "write [!…] to exclude characters",
    "[[:": "write ranges such as [a-z]",
    "\\": "shard names contain no character that needs a backslash",
}
"""Syntax that pattern languages understand differently, and its replacement."""


def split_patterns(text: str) -> list[str]:
    """``{00..08}_*,{a,b}`` -> ``["{00..08}_*", "{a,b}"]``: commas in braces and brackets belong to their pattern."""
    if text.count("{") > braces.MOST_BRACES:
        raise BadInputError(f"bad patterns {text[:SHOWN]!r}: more than {braces.MOST_BRACES} braces", "use * instead")
    ends, depth = [-1], 0
    for place, character in enumerate(text):
        depth = max(0, depth + (character in "{[") - (character in "}]"))
        if character == "," and depth == 0:
            ends.append(place)
    found = (text[before + 1 : end] for before, end in itertools.pairwise([*ends, len(text)]))
    return [pattern for pattern in found if pattern]


def check_pattern(pattern: str) -> None:
    """Raise ValueError, with the reason, if ``pattern`` is invalid or ambiguous."""
    for unclear, hint in UNCLEAR.items():
        if unclear in pattern:
            raise ValueError(f"{unclear!r} is not part of a pattern of shard names: {hint}")
    alternatives(pattern)


def matching(pattern: str, names: Iterable[str]) -> set[str]:
    """The ``names`` that ``pattern`` matches. ValueError, with the reason, if its braces are invalid."""
    plain, patterns = braces.plain_and_patterns(alternatives(pattern) if "{" in pattern else [pattern])
    compiled = re.compile("|".join(map(fnmatch.translate, patterns))) if patterns else None
    return {name for name in names if name in plain or (compiled is not None and compiled.match(name))}


def no_match(pattern: str, key: str, names: Iterable[str]) -> tuple[str, str]:
    """Message and remedy for a ``pattern`` of ``key`` that matches none of ``names``."""
    return f"no shard matches {pattern!r} in {key!r}", f"use names of these: {some(sorted(names))}"
