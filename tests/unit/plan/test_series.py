"""``current.json`` as text and back, for the stages and for Airflow alike."""

import json
from typing import Any

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan.series import series_from_json, series_to_json

URI = "s3://bucket/root/d/current.json"


def entry(number: int) -> dict[str, Any]:
    folder = f"versions/{number}"
    return {"version": number, "path": folder, "plan": f"{folder}/plan.json", "published_at": "t", "counts": {}}


def text(**changes: Any) -> bytes:
    return json.dumps({**entry(2), "last": 4, "history": [entry(3), entry(1)], **changes}).encode()


def test_a_series_is_read_and_written_as_it_was() -> None:
    series = series_from_json((text(), "tag"), URI)
    assert (series.current, series.last, series.tag, list(series.entries)) == (2, 4, "tag", [1, 2, 3])
    assert series.dataset == "d"
    assert series.folder() == "s3://bucket/root/d/versions/2"
    assert series.plan_uri(3) == "s3://bucket/root/d/versions/3/plan.json"
    assert series_from_json((series_to_json(series).encode(), "tag"), URI) == series
    assert json.loads(series_to_json(series)) == {**entry(2), "last": 4, "history": [entry(1), entry(3)]}


def test_a_version_is_known_by_its_folder() -> None:
    series = series_from_json((text(), "tag"), URI)
    assert series.number_of("s3://bucket/root/d/versions/3") == 3
    assert series.number_of("s3://bucket/root/d/versions/9") is None


def test_nothing_was_published_where_there_is_no_object() -> None:
    series = series_from_json(None, URI)
    assert (series.current, series.tag, series.last) == (0, None, 0)
    with pytest.raises(BadInputError, match="'d' was never published"):
        series.plan_uri()


WRONG = [b"", b"{", b"[]", b"{}", b'{"version": "x"}', text(history=[{}]), text(last=None), text(version=1)]


@pytest.mark.parametrize("data", WRONG)
def test_a_damaged_object_is_bad_input_that_names_it(data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"current\.json.*\n.*restore it"):
        series_from_json((data, "tag"), URI)
