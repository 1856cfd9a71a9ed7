"""YAML as words, lists and mappings that know their line, so that an error names the line to mend.

Every scalar stays the word that is written: ``00``, ``no`` and ``1e3`` are turned into nothing else.
"""

import difflib
from collections.abc import Iterable
from typing import Any, TypeAlias

import yaml

from retro_ops.errors import BadInputError

QUOTE = "put a text that holds { } [ ] : or # in quotes"


class Word(str):
    """A scalar; ``line`` counts from 1. Equal to the plain text."""

    line: int

    def __new__(cls, text: str, line: int = 0) -> "Word":
        word = super().__new__(cls, text)
        word.line = line
        return word


class Words(list["Value"]):
    """A list."""

    line: int


class Keys(dict[Word, "Value"]):
    """A mapping, in the order in which it is written."""

    line: int


Value: TypeAlias = Word | Words | Keys


class Faults:
    """What is wrong with a recipe; all of it is shown at once."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._found: list[tuple[int, str]] = []

    def add(self, at: Any, what: str, hint: str) -> None:
        """``at``: the word, list or mapping that is wrong, or its line."""
        line = at if isinstance(at, int) else at.line
        said = f"{self._uri}:{line}: {what}; {hint}"
        if (line, said) not in self._found:
            self._found.append((line, said))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        if self._found:
            # In the order of the file; a stable sort keeps what belongs to one line together.
            raise BadInputError("\n".join(said for _, said in sorted(self._found, key=lambda fault: fault[0])))


def near(word: str, known: Iterable[str]) -> str:
    """``did you mean 'files'?``, or all that there is."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(names) or 'nothing'}"


def load(text: str, uri: str, faults: Faults) -> Keys:
    """The mapping that ``text`` holds. BadInputError when it is no YAML."""
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        raise BadInputError(f"{uri}:{mark.line + 1 if mark else 1}: not YAML: {said}; {QUOTE}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadInputError(f"{uri}:1: not YAML: {str(error).splitlines()[0]}; write it as plain text") from error
    value = _value(node, faults, ()) if node is not None else None
    if not isinstance(value, Keys):
        raise BadInputError(f"{uri}:1: a recipe is a mapping; begin with 'categories:' and 'sources:'")
    return value


def _value(node: Any, faults: Faults, above: tuple[int, ...]) -> Value:
    line = node.start_mark.line + 1
    if id(node) in above:
        faults.add(line, "an alias that holds itself", "write out what is meant")
        return Word("", line)
    above = (*above, id(node))
    if isinstance(node, yaml.ScalarNode):
        return Word(node.value, line)
    if isinstance(node, yaml.SequenceNode):
        words = Words(_value(entry, faults, above) for entry in node.value)
        words.line = line
        return words
    keys = Keys()
    keys.line = line
    for key_node, value_node in node.value:
        key = _value(key_node, faults, above)
        if not isinstance(key, Word):
            faults.add(key, "a key that is no text", QUOTE)
        elif key in keys:
            faults.add(key, f"{str(key)!r} stands here twice", "keep one of them")
        else:
            keys[key] = _value(value_node, faults, above)
    return keys
