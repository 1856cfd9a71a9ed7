"""Patterns of files and of shards, as a recipe writes them."""

from collections.abc import Callable

import bracex

from retro_ops.corpus.recipes.model import SUFFIXES, Line
from retro_ops.corpus.recipes.yaml_nodes import Faults, Keys, Word, Words

MOST_ALTERNATIVES = 100_000
"""Of the braces in a pattern."""


def alternatives(pattern: str) -> list[str]:
    """``{00..29}.jsonl`` -> 30 patterns. ValueError, saying what is wrong, for braces that are no list or range."""
    for opening, closing in ("{}", "[]"):
        if pattern.count(opening) != pattern.count(closing):
            raise ValueError(f"{opening} and {closing} do not match")
    if "{date}" in pattern:
        raise ValueError("a recipe knows no {date}")
    try:
        found = bracex.expand(pattern, keep_escapes=True, limit=MOST_ALTERNATIVES)
    except bracex.ExpansionLimitException:
        raise ValueError(f"its braces stand for more than {MOST_ALTERNATIVES:,} names") from None
    if any("{" in name or "}" in name for name in found):
        raise ValueError("braces hold a list {a,b} or a range {00..29}")
    return list(found)


def patterns(
    keys: Keys, key: str, faults: Faults, required: bool = False, check: Callable[[str], object] = alternatives
) -> tuple[Line, ...]:
    """Patterns of files, or of what ``check`` says: it raises ValueError for what is no pattern."""
    found = words(keys, key, faults, required)
    for word in found:
        check_pattern(word, faults, check)
        if (
            key == "files"
            and "." in (last := word.rpartition("/")[2])
            and not last.endswith((*SUFFIXES, "*", "}", "]"))
        ):
            faults.add(word, f"{str(word)!r} has no known format", f"there is {', '.join(SUFFIXES)}")
    return tuple(Line(str(word), word.line) for word in found)


def check_pattern(word: Word, faults: Faults, check: Callable[[str], object] = alternatives) -> None:
    try:
        check(word)
    except ValueError as error:
        faults.add(word, f"bad pattern {str(word)!r}: {error}", "write it like Pile/train/{00..29}.jsonl.zst")


def words(keys: Keys, key: str, faults: Faults, required: bool = True) -> list[Word]:
    """A text, or a list of texts."""
    value = keys.get(Word(key))
    found = [value] if isinstance(value, Word) else list(value) if isinstance(value, Words) else []
    for word in found:
        if not isinstance(word, Word) or not word:
            faults.add(
                word, f"{key!r} holds what is no text", "write one text a line, in quotes if it holds { } [ ] : #"
            )
    if (required or value is not None) and not found:
        faults.add(
            value if value is not None else keys, f"no {key!r}", f"write '{key}:' with a text or a list of texts"
        )
    return [word for word in found if isinstance(word, Word) and word]
