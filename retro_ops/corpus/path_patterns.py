"""Patterns of paths, compiled once and bounded: one language for corpora, members of archives and rules by path.

``*`` is any text within a name, ``**`` any number of folders, ``?`` a character, ``[ab]`` one of some characters.
Braces hold a list ``{a,b}`` or a range ``{00..29}``. Only a pattern that begins with a dot matches hidden names.
"""

import functools
import re
from collections.abc import Callable

from wcmatch import glob

from retro_ops.corpus import braces
from retro_ops.errors import BadInputError

MOST_GLOBSTARS = 3
"""Limit on ``**``. Each may end at any folder, so time grows with this power of the depth; ``*`` never looks back."""

SHOWN = 200


@functools.lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches ``pattern``. Both are plain strings: ``s3://bucket/key`` is nothing special, and a leading
    ``./`` does not count. BadInputError for a pattern that is none, or that could take forever."""
    if pattern.count("**") > MOST_GLOBSTARS:
        raise _no_pattern(pattern, f"it has more than {MOST_GLOBSTARS} times **")
    try:
        plain, patterns = braces.plain_and_patterns(braces.expand(pattern.removeprefix("./")))
        compiled = glob.compile(patterns, flags=glob.GLOBSTAR | glob.FORCEUNIX, limit=0) if patterns else None
    except (RecursionError, ValueError, re.error) as error:
        raise _no_pattern(pattern, error) from error

    def matches(path: str) -> bool:
        name = path.removeprefix("./")
        return name in plain or (compiled is not None and bool(compiled.match(name)))

    return matches


def _no_pattern(pattern: str, reason: object) -> BadInputError:
    return BadInputError(
        f"bad pattern {pattern[:SHOWN]!r}: {reason}", "use *, name a folder, or write shorter patterns"
    )
