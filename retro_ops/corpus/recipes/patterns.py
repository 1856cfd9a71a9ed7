"""Checks and expands the patterns that a recipe uses for files and shards."""

from collections.abc import Callable

from retro_ops.corpus import braces
from retro_ops.corpus.recipes.model import SUFFIXES, RecipeLine
from retro_ops.corpus.recipes.yaml_nodes import Faults, YamlList, YamlMapping, YamlText
from retro_ops.uris import file_name


def alternatives(pattern: str) -> list[str]:
    """Expand braces: ``{00..29}.jsonl`` -> 30 patterns. Raises ValueError if they are neither a list nor a range."""
    for opening, closing in ("{}", "[]"):
        if pattern.count(opening) != pattern.count(closing):
            raise ValueError(f"{opening} and {closing} do not match")
    if "{date}" in pattern:
        raise ValueError("{date} is not supported in a recipe")
    names = braces.expand(pattern)
    if any("{" in name or "}" in name for name in names):
        raise ValueError("braces must hold a list {a,b} or a range {00..29}")
    return names


def patterns(
    keys: YamlMapping, key: str, faults: Faults, required: bool = False, check: Callable[[str], object] = alternatives
) -> tuple[RecipeLine, ...]:
    """The patterns under ``key``, with their lines. ``check`` raises ValueError for an invalid one."""
    values = words(keys, key, faults, required)
    for word in values:
        check_pattern(word, faults, check)
        if key == "files" and "." in (last := file_name(word)) and not last.endswith((*SUFFIXES, "*", "}", "]")):
            faults.add(word, f"{str(word)!r} has no known format", f"the formats are {', '.join(SUFFIXES)}")
    return tuple(RecipeLine(str(word), word.line) for word in values)


def check_pattern(word: YamlText, faults: Faults, check: Callable[[str], object] = alternatives) -> None:
    """Record a fault if the braces or brackets of ``word`` are invalid."""
    try:
        check(word)
    except ValueError as error:
        faults.add(word, f"bad pattern {str(word)!r}: {error}", "write it like Pile/train/{00..29}.jsonl.zst")


def words(keys: YamlMapping, key: str, faults: Faults, required: bool = True) -> list[YamlText]:
    """The values under ``key``, which holds one text or a list of texts. Bad values are recorded and left out."""
    value = keys.get(YamlText(key))
    values = [value] if isinstance(value, YamlText) else list(value) if isinstance(value, YamlList) else []
    for word in values:
        if not isinstance(word, YamlText) or not word:
            faults.add(
                word, f"{key!r} must hold plain text", "write one value per line, quoted if it contains { } [ ] : #"
            )
    if (required or value is not None) and not values:
        faults.add(
            value if value is not None else keys,
            f"{key!r} is missing or empty",
            f"write '{key}:' with one value or a list of values",
        )
    return [word for word in values if isinstance(word, YamlText) and word]
