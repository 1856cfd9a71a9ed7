"""Documents of ours that are damaged, cut off or of another kind."""

import contextlib
import json
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.plan import documents

HOSTILE = {
    "cut off": b'{"a": [1, 2',
    "empty": b"",
    "deep lists": b"[" * 100_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"a": ' + b"7" * 5000 + b"}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32"),
    "Latin-1": b'{"a": "\xe9"}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "too large": b'{"a": 1e999}',
    "two documents": b"{}{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_json_of_ours_is_named_with_its_file(name: str) -> None:
    with pytest.raises(BadInputError, match=r"^/d/current\.json is not JSON.*\n  What to do: "):
        documents.read(HOSTILE[name], "/d/current.json", Any)


def test_the_depth_is_limited_where_no_type_does_so() -> None:
    deep = "[" * 150 + "]" * 150
    for text, kind in ((deep, Any), (f'{{"name": "a", "more": {deep}}}', Entry), (f'{{"a": {deep}}}', dict[str, Any])):
        with pytest.raises(BadInputError, match="should be nested at most 100 levels deep"):
            documents.read(text, "/f", kind)


class Entry(TypedDict):
    name: str
    count: NotRequired[int | None]


@dataclass
class Of:
    share: float
    side: Literal["train", "val"]
    entries: tuple[Entry, ...] = ()
    by_name: dict[str, list[bool]] | None = None


GOOD: dict[str, Any] = {
    "share": 1,
    "side": "val",
    "entries": [{"name": "a", "count": None}, {"name": "b", "more": 1}],
    "by_name": {"x": [True]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": True}, "share should be a number, not true"),
        ({"share": "0.5"}, 'share should be a number, not "0.5"'),
        ({"side": ["val"]}, 'side should be "train" or "val", not list'),
        ({"entries": {}}, "entries should be a list, not dict"),
        ({"entries": [{"name": "a"}, {"name": 1}]}, r"entries\[1\]\.name should be a text, not 1"),
        ({"entries": [{"name": "a", "count": 1.0}]}, r"entries\[0\]\.count should be a whole number, not 1\.0"),
        ({"entries": [{}]}, r"entries\[0\] should be an object with 'name', not dict"),
        ({"by_name": {"x": [1]}}, r"by_name\.x\[0\] should be true or false, not 1"),
        ({"by_name": "x" * 1000}, "by_name should be an object, not .{41}\n"),
        ({"typo": 1}, "the document should be an object without 'typo'"),
    ],
)
def test_the_place_of_a_wrong_value_is_named(change: dict[str, Any], message: str) -> None:
    assert documents.read(json.dumps(GOOD), "/f", Of) == GOOD
    with pytest.raises(BadInputError, match=f"/f: {message}") as caught:
        documents.read(json.dumps(GOOD | change), "/f", Of, "do this")
    assert str(caught.value).endswith("What to do: do this")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
def test_any_document_is_right_or_a_clear_error(document: Any) -> None:
    for kind in (Of, Entry, list[Of], dict[str, Entry]):
        with contextlib.suppress(BadInputError):
            assert documents.read(json.dumps(document), "/f", kind) == document
