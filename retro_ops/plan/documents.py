"""Reads the JSON documents of this package: plans, specs, manifests, reports and the like.

A document may be damaged, cut off or of another kind. So each is parsed here, and compared with a type: the error names
the file, the place in it and what to do. Standard library only, because Airflow imports this module.
"""

import contextlib
import functools
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

from retro_ops.errors import DamagedError

MOST_LEVELS = 100
"""Levels of lists and objects; ours have fewer than ten."""

SHOWN = 40
"""Characters of a wrong value in an error."""

DAMAGED = "it is damaged or of another kind: write it again, or restore it from a backup"

Check = Callable[[Any], None]

NAMES: dict[Any, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


class _MismatchError(Exception):
    """A value that is not of its type. ``place``: keys and positions that lead to it, the last first."""

    def __init__(self, wanted: str, found: Any) -> None:
        self.wanted, self.found = wanted, found
        self.place: list[str] = []


def read(data: str | bytes, uri: str, kind: Any, hint: str = DAMAGED) -> Any:
    """The JSON document ``data`` of ``uri``, as Python's json module returns it. DamagedError unless it is a ``kind``.

    ``kind``: a dataclass, a TypedDict, ``list[…]``, ``dict[str, …]``, ``X | None``, a Literal, a plain type or Any. A
    TypedDict may have further keys, a dataclass may not. ``hint``: what to do about a wrong document.
    """
    document = _parsed(data, uri, hint)
    try:
        _checker(kind)(document)
    except _MismatchError as error:
        place = "".join(reversed(error.place)).removeprefix(".")
        shown = json.dumps(error.found) if not isinstance(error.found, dict | list) else type(error.found).__name__
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        raise DamagedError(f"{uri}: {place or 'the document'} should be {error.wanted}, not {shown}", hint) from None
    return document


def _parsed(data: str | bytes, uri: str, hint: str) -> Any:
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        document = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise DamagedError(f"{uri} is not JSON: invalid UTF-8 at byte {error.start}", hint) from error
    except ValueError as error:
        raise DamagedError(f"{uri} is not JSON: {error}", hint) from error
    except RecursionError as error:
        raise DamagedError(
            f"{uri} is not JSON that retro-ops wrote: nested deeper than {MOST_LEVELS} levels", hint
        ) from error
    return document


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _check_depth(value: Any) -> None:
    """For a value of any type, since the others have the depth of their type."""
    level, at = 0, [value] if isinstance(value, dict | list) else []
    while at:
        if level == MOST_LEVELS:
            raise _MismatchError(f"nested at most {MOST_LEVELS} levels deep", value)
        inside = (entry.values() if isinstance(entry, dict) else entry for entry in at)
        at = [entry for of in inside for entry in of if isinstance(entry, dict | list)]
        level += 1


@functools.cache
def _checker(kind: Any) -> Check:
    """The function that raises _MismatchError for a value that is not of ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _check_depth
    if origin is Literal:
        return _literal(arguments)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin in (list, tuple, Sequence):
        return _list(_checker(arguments[0]))
    if origin in (dict, Mapping):
        return _mapping(_checker(arguments[1]))
    if is_typeddict(kind):
        return _object(get_type_hints(kind), kind.__required_keys__, closed=False)
    if is_dataclass(kind):
        given = [field for field in fields(kind) if field.init]
        hints = get_type_hints(kind)
        required = {f.name for f in given if f.default is MISSING and f.default_factory is MISSING}
        return _object({field.name: hints[field.name] for field in given}, required, closed=True)
    if origin is not None and arguments:  # Required, NotRequired and the like.
        return _checker(arguments[0])
    return _plain(kind)


def _plain(kind: Any) -> Check:
    accepted = (int, float) if kind is float else (type(None),) if kind is None else (kind,)

    def check(value: Any) -> None:
        if type(value) not in accepted:
            raise _MismatchError(NAMES.get(kind, "null"), value)

    return check


def _literal(values: tuple[Any, ...]) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, str | int) or value not in values:
            raise _MismatchError(" or ".join(map(json.dumps, values)), value)

    return check


def _union(kinds: tuple[Any, ...]) -> Check:
    checks = [_checker(kind) for kind in kinds if kind is not type(None)]
    optional = type(None) in kinds

    def check(value: Any) -> None:
        if value is None and optional:
            return
        for of in checks[:-1]:
            with contextlib.suppress(_MismatchError):
                of(value)
                return
        checks[-1](value)

    return check


def _list(check_entry: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not list:
            raise _MismatchError("a list", value)
        for position, entry in enumerate(value):
            try:
                check_entry(entry)
            except _MismatchError as error:
                error.place.append(f"[{position}]")
                raise

    return check


def _mapping(check_entry: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise _MismatchError("an object", value)
        for key, entry in value.items():
            try:
                check_entry(entry)
            except _MismatchError as error:
                error.place.append(f".{key[:SHOWN]}")
                raise

    return check


def _object(hints: Mapping[str, Any], required: set[str] | frozenset[str], *, closed: bool) -> Check:
    checks = {name: _checker(kind) for name, kind in hints.items()}

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise _MismatchError("an object", value)
        for name in required:
            if name not in value:
                raise _MismatchError(f"an object with {name!r}", value)
        for key, entry in value.items():
            if (of := checks.get(key)) is None:
                if closed:
                    raise _MismatchError(f"an object without {key[:SHOWN]!r}", value)
                _check_depth(entry)
                continue
            try:
                of(entry)
            except _MismatchError as error:
                error.place.append(f".{key}")
                raise

    return check
