"""Patterns of paths, compiled once and bounded: one language for corpora, members of archives and rules by path.

``*`` is any text within a name, ``**`` any number of folders, ``?`` a character, ``[ab]`` one of some characters.
Braces hold a list ``{a,b}`` or a range ``{00..29}``. Only a pattern that begins with a dot matches hidden names.
"""

import functools
import re
from collections.abc import Callable

import bracex
from wcmatch import glob

from retro_ops.errors import BadInputError

MOST_ALTERNATIVES = 10_000
"""Limit on the names that the braces of one pattern expand to."""

MOST_GLOBSTARS = 3
"""Limit on ``**``. Each may end at any folder, so time grows with this power of the depth; ``*`` never looks back."""

MOST_PATTERNS = 1000
"""Limit on those of them that are patterns themselves; a plain name costs a millionth of it."""

MAGIC = re.compile(r"[*?\[\\]")

MOST_BRACKETS = 100
"""Limit on ``[``. The library looks for the end of each, so thousands that have none take minutes."""

SHOWN = 200


@functools.lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches ``pattern``. Both are plain strings: ``s3://bucket/key`` is nothing special, and a leading
    ``./`` does not count. BadInputError for a pattern that is none, or that could take forever."""
    for what, most in (("**", MOST_GLOBSTARS), ("[", MOST_BRACKETS)):
        if pattern.count(what) > most:
            raise BadInputError(
                f"{pattern[:SHOWN]!r} has more than {most} times {what}", "write a shorter pattern, or name a folder"
            )
    try:
        names = bracex.expand(pattern.removeprefix("./"), keep_escapes=True, limit=MOST_ALTERNATIVES)
        plain = frozenset(name for name in names if not MAGIC.search(name))
        patterns = [name for name in names if name not in plain]
        if len(patterns) > MOST_PATTERNS:
            raise bracex.ExpansionLimitException
        compiled = glob.compile(patterns, flags=glob.GLOBSTAR | glob.FORCEUNIX, limit=0) if patterns else None
    except bracex.ExpansionLimitException as error:
        raise BadInputError(
            f"the braces of {pattern[:SHOWN]!r} expand to more than {MOST_ALTERNATIVES:,} names or "
            f"{MOST_PATTERNS:,} patterns",
            "use * or a folder",
        ) from error
    except (RecursionError, ValueError, re.error) as error:
        raise BadInputError(f"{pattern[:SHOWN]!r} is not a pattern: {error}", "write a shorter pattern") from error

    def matches(path: str) -> bool:
        name = path.removeprefix("./")
        return name in plain or (compiled is not None and bool(compiled.match(name)))

    return matches
