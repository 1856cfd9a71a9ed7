"""Patterns of paths, compiled once and bounded: one language for corpora, members of archives and rules by path.

``*`` is any text within a name, ``**`` any number of folders, ``?`` a character, ``[ab]`` one of some characters.
Braces hold a list ``{a,b}`` or a range ``{00..29}``. Only a pattern that begins with a dot matches hidden names.
"""

import functools
import re
from collections.abc import Callable

from wcmatch import glob
from wcmatch._wcparse import PatternLimitException  # Exported nowhere else.

from retro_ops.errors import BadInputError

MOST_ALTERNATIVES = 10_000
"""Limit on the names that the braces of one pattern expand to."""

MOST_GLOBSTARS = 3
"""Limit on ``**``. Each may end at any folder, so time grows with this power of the depth; ``*`` never looks back."""

SHOWN = 200


@functools.lru_cache(maxsize=1024)
def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches ``pattern``. Both are plain strings: ``s3://bucket/key`` is nothing special, and a leading
    ``./`` does not count. BadInputError for a pattern that is none, or that could take forever."""
    if pattern.count("**") > MOST_GLOBSTARS:
        raise BadInputError(
            f"{pattern[:SHOWN]!r} has more than {MOST_GLOBSTARS} times **", "write a shorter pattern, or name a folder"
        )
    flags = glob.GLOBSTAR | glob.BRACE | glob.FORCEUNIX
    try:
        compiled = glob.compile(pattern.removeprefix("./"), flags=flags, limit=MOST_ALTERNATIVES)
    except PatternLimitException as error:
        raise BadInputError(
            f"the braces of {pattern[:SHOWN]!r} expand to more than {MOST_ALTERNATIVES:,} names", "use * or a folder"
        ) from error
    except (RecursionError, ValueError, re.error) as error:
        raise BadInputError(f"{pattern[:SHOWN]!r} is not a pattern: {error}", "write a shorter pattern") from error
    return lambda path: bool(compiled.match(path.removeprefix("./")))
