"""YAML texts, lists and mappings that remember their line, so that an error can name the line to correct.

Every scalar stays the text that was written: ``00``, ``no`` and ``1e3`` are not converted.
"""

import difflib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import yaml

from retro_ops.errors import BadInputError

MOST_VALUES = 100_000
"""Limit on texts, lists and mappings of a recipe: aliases of aliases would be a billion of them."""

SHOWN = 50
"""Faults that an error lists."""

LONGEST_WORD = 50
"""Characters of an unknown word that are compared with the known ones."""

QUOTE = "quote text that contains { } [ ] : or #"


class YamlText(str):
    """A scalar, equal to the plain text; ``line`` counts from 1."""

    line: int

    def __new__(cls, text: str, line: int = 0) -> "YamlText":
        word = super().__new__(cls, text)
        word.line = line
        return word


class YamlList(list["Value"]):
    """A YAML list and the line where it starts."""

    line: int


class YamlMapping(dict[YamlText, "Value"]):
    """A YAML mapping, in the order of the file, and the line where it starts."""

    line: int


Value: TypeAlias = YamlText | YamlList | YamlMapping


class Faults:
    """Collects the errors of a recipe, so that all are shown at once."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._found: dict[tuple[int, str], None] = {}

    def add(self, at: Any, what: str, hint: str) -> None:
        """Record that ``what`` is wrong and how to fix it (``hint``). ``at``: the faulty value, or its line."""
        line = at if isinstance(at, int) else at.line
        message = f"{self._uri}:{line}: {what}; {hint}"
        self._found[line, message] = None

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        if self._found:
            # In file order; the sort is stable, so errors of one line keep their order.
            messages = [message for _, message in sorted(self._found, key=lambda fault: fault[0])]
            more = [f"… and {len(messages) - SHOWN:,} more"] if len(messages) > SHOWN else []
            raise BadInputError("\n".join([*messages[:SHOWN], *more]))


def near(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: ``did you mean 'files'?``, or the list of known words."""
    names = list(known)
    close = difflib.get_close_matches(word[:LONGEST_WORD], names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names) or '(none)'}"


def load(text: str, uri: str, faults: Faults) -> YamlMapping:
    """Parse ``text`` as a YAML mapping. Raises BadInputError if it is not one."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise BadInputError(f"{uri}:{mark.line + 1 if mark else 1}: not valid YAML: {problem}; {QUOTE}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInputError(f"{uri}:1: not valid YAML: {str(error).splitlines()[0]}; save it as plain text") from error
    left = itertools.count(MOST_VALUES, -1)
    try:
        value = _value(node, faults, (), left) if node is not None else None
    except (OverflowError, RecursionError) as error:
        raise BadInputError(
            f"{uri}:1: a recipe has at most {MOST_VALUES:,} values, those of aliases included; write fewer"
        ) from error
    if not isinstance(value, YamlMapping):
        raise BadInputError(f"{uri}:1: a recipe must be a mapping; begin with 'categories:' and 'sources:'")
    return value


def _value(node: Any, faults: Faults, above: tuple[int, ...], left: Iterator[int]) -> Value:
    if next(left) == 0:
        raise OverflowError
    line = node.start_mark.line + 1
    if id(node) in above:
        faults.add(line, "this alias refers to itself", "replace it by the value itself")
        return YamlText("", line)
    above = (*above, id(node))
    if isinstance(node, yaml.ScalarNode):
        return YamlText(node.value, line)
    if isinstance(node, yaml.SequenceNode):
        words = YamlList(_value(entry, faults, above, left) for entry in node.value)
        words.line = line
        return words
    keys = YamlMapping()
    keys.line = line
    for key_node, value_node in node.value:
        key = _value(key_node, faults, above, left)
        if not isinstance(key, YamlText):
            faults.add(key, "a key must be plain text", QUOTE)
        elif key in keys:
            faults.add(key, f"duplicate key {str(key)!r}", "keep one of them")
        else:
            keys[key] = _value(value_node, faults, above, left)
    return keys
