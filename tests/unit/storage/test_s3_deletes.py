"""Many objects are deleted in few requests, also from a store that does not know these."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from retro_ops.errors import ConfigurationError
from retro_ops.storage import s3 as s3_storage
from retro_ops.storage import store
from retro_ops.storage.s3_client import client

NAMES = ("a", "b & c", "d<e>", "f/g", "ü", "h'i", "j%20k", "l+m")


def fill(folder: str) -> list[str]:
    uris = [f"{folder}/{name}" for name in NAMES]
    for uri in uris:
        store.write(uri, b"x")
    return uris


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


@contextmanager
def requests(answers: dict[str, tuple[int, str]] | None = None) -> Iterator[list[str]]:
    """Names of the requests that are sent. ``answers``: status and body for requests that do not reach the server."""
    sent: list[str] = []
    events = client().meta.events

    def on_request(request: Any, event_name: str, **_: Any) -> AWSResponse | None:
        name = event_name.rpartition(".")[2]
        sent.append(name)
        if name not in (answers or {}):
            return None
        status, body = (answers or {})[name]
        return AWSResponse(request.url, status, {}, _Raw(body.encode()))

    events.register("before-send.s3", on_request)
    try:
        yield sent
    finally:
        events.unregister("before-send.s3", on_request)


def test_a_folder_is_deleted_in_one_request_for_many_objects(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(f"{s3}/deleted")
    kept = fill(f"{s3}/deleted-not")
    with requests() as sent:
        store.at(s3).delete_folder(f"{s3}/deleted")
    assert sorted(sent) == ["DeleteObjects", "ListObjectsV2"]
    monkeypatch.setattr(s3_storage, "DELETED_AT_ONCE", 3)
    fill(f"{s3}/deleted")
    with requests() as sent:
        store.at(s3).delete_folder(f"{s3}/deleted")
    assert sorted(sent) == ["DeleteObjects"] * 3 + ["ListObjectsV2"]
    assert store.at(s3).list(f"{s3}/deleted") == []
    assert store.at(s3).list(f"{s3}/deleted-not") == sorted(kept)


def test_objects_that_do_not_exist_are_no_error(s3: str) -> None:
    store.at(s3).delete_all([f"{s3}/deleted/no-such-object"])
    store.at(s3).delete_all([])


def refusal(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>No.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (405, "MethodNotAllowed"), (400, "MissingContentMD5"), (411, "MissingContentLength")],
)
def test_a_store_without_this_request_gets_one_for_each_object(s3: str, status: int, code: str) -> None:
    uris = fill(f"{s3}/single")
    with requests({"DeleteObjects": (status, refusal(code))}) as sent:
        store.at(s3).delete_all(uris)
    assert sorted(sent) == ["DeleteObject"] * len(uris) + ["DeleteObjects"]
    assert store.at(s3).list(f"{s3}/single") == []


def test_objects_that_the_store_did_not_delete_are_tried_alone(s3: str) -> None:
    uris = fill(f"{s3}/partly")
    errors = "".join(f"<Error><Key>partly/{name}</Key><Code>InternalError</Code></Error>" for name in ("a", "f/g"))
    with requests({"DeleteObjects": (200, f"<DeleteResult>{errors}</DeleteResult>")}) as sent:
        store.at(s3).delete_all(uris)
    assert sorted(sent) == ["DeleteObject", "DeleteObject", "DeleteObjects"]
    assert {uri for uri in uris if not store.exists(uri)} == {f"{s3}/partly/a", f"{s3}/partly/f/g"}


def test_a_refusal_of_the_keys_is_an_error(s3: str) -> None:
    uris = fill(f"{s3}/refused")
    with (
        requests({"DeleteObjects": (403, refusal("AccessDenied"))}) as sent,
        pytest.raises(ConfigurationError, match="check AWS_ACCESS_KEY_ID"),
    ):
        store.at(s3).delete_all(uris)
    assert sent == ["DeleteObjects"]
    assert all(map(store.exists, uris))
