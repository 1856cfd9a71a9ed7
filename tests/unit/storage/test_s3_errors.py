"""Refusals of the store: those of credentials, those of the request, and those that may pass."""

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from retro_ops.errors import BadInputError, ConfigurationError, RetroError, TransientError
from retro_ops.storage import store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.s3_client import bucket_prefix, client, s3_errors

KEYS = "check AWS_ACCESS_KEY_ID"


def refused(status: int, code: str, message: str = "Because.") -> Exception:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")


def raised(error: Exception) -> RetroError:
    with pytest.raises(RetroError) as found, s3_errors("s3://bucket/key"):
        raise error
    assert "s3://bucket/key" in str(found.value)
    return found.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (400, "InvalidToken"),
        (400, "TokenRefreshRequired"),
        (401, "401"),
        (403, "403"),
        (403, ""),
        (403, "RequestTimeTooSkewed"),
    ],
)
def test_refused_credentials_are_called_so(status: int, code: str) -> None:
    found = raised(refused(status, code))
    assert type(found) is ConfigurationError
    assert KEYS in str(found)
    assert (code or str(status)) in str(found)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "InvalidArgument"),
        (400, "EntityTooLarge"),
        (400, "KeyTooLongError"),
        (400, "InvalidBucketName"),
        (400, "MalformedXML"),
        (400, "400"),
        (301, "PermanentRedirect"),
        (405, "MethodNotAllowed"),
        (411, "MissingContentLength"),
        (413, "413"),
    ],
)
def test_other_refusals_have_the_servers_message_and_are_not_blamed_on_credentials(status: int, code: str) -> None:
    found = raised(refused(status, code, "Part number must be an integer between 1 and 10000"))
    assert type(found) is ConfigurationError
    assert f"{code}: Part number must be an integer between 1 and 10000" in str(found)
    assert "ACCESS_KEY" not in str(found)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "RequestTimeout"),
        (400, "BadDigest"),
        (400, "IncompleteBody"),
        (400, "ExpiredToken"),
        (400, "InvalidPart"),
        (408, "408"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (0, ""),
    ],
)
def test_refusals_that_may_pass_are_retried(status: int, code: str) -> None:
    found = raised(refused(status, code))
    assert type(found) is TransientError
    assert "Because." in str(found)


def test_answers_that_have_an_error_of_their_own() -> None:
    assert type(raised(refused(404, "NoSuchKey"))) is BadInputError
    assert type(raised(refused(412, "PreconditionFailed"))) is ConflictError
    assert "took over" in str(raised(refused(404, "NoSuchUpload")))
    assert "shorter than its header" in str(raised(refused(416, "InvalidRange")))


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
@pytest.mark.parametrize("request_kind", ["read", "write", "exists", "list"])
def test_a_server_that_refuses_the_keys(
    s3: str, monkeypatch: pytest.MonkeyPatch, variable: str, request_kind: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    client.cache_clear()
    uri = f"{s3}/refused.bin"
    calls = {
        "read": lambda: store.read(uri),
        "write": lambda: store.write(uri, b"x"),
        "exists": lambda: store.exists(uri),  # Answers to HEAD have no body, so no code.
        "list": lambda: store.at(uri).list(s3),
    }
    with pytest.raises(ConfigurationError, match=KEYS):
        calls[request_kind]()


def test_a_server_that_refuses_the_request(s3: str) -> None:
    uri = f"{s3}/{'long' * 500}"
    with pytest.raises(ConfigurationError, match="KeyTooLongError: Your key is too long") as found:
        store.write(uri, b"x")
    assert "ACCESS_KEY" not in str(found.value)


def test_a_server_that_refuses_to_complete_an_upload(s3: str) -> None:
    target = {"Bucket": s3.removeprefix("s3://"), "Key": "refused.bin"}
    upload = {**target, "UploadId": client().create_multipart_upload(**target)["UploadId"]}
    tags = [client().upload_part(**upload, PartNumber=number, Body=b"x")["ETag"] for number in (1, 2)]
    parts = [{"PartNumber": 2, "ETag": tags[1]}, {"PartNumber": 1, "ETag": tags[0]}]
    with (
        pytest.raises(ConfigurationError, match="InvalidPartOrder: The list of parts was not in ascending order"),
        s3_errors(f"{s3}/refused.bin"),
    ):
        client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    client().abort_multipart_upload(**upload)


def test_folders_with_an_empty_name_are_folders_of_their_own() -> None:
    uris = ("s3://bucket", "s3://bucket/", "s3://bucket/a", "s3://bucket/a/", "s3://bucket/a//", "s3://bucket/a//b")
    assert [bucket_prefix(uri)[1] for uri in uris] == ["", "", "a/", "a/", "a//", "a//b/"]


def test_a_name_that_no_bucket_has_is_bad_input() -> None:
    with pytest.raises(BadInputError, match="not a location in S3"):
        store.read("s3://no bucket!/key")


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://", "s3:///key", "s3://a/key", "s3://two words/key", "s3://arn:aws:s3:us-east-1:1:accesspoint/x/key"),
        *("s3://bucket/a\0b", "s3://bucket/\ud800", "s3://\udcff/key", "s3://-b/key"),
    ],
)
def test_what_is_no_location_fails_without_retry(uri: str) -> None:
    for call in ("exists", "read", "list", "fingerprint", "delete", "read_tagged"):
        with pytest.raises(BadInputError):
            getattr(store.at(uri), call)(uri)


@pytest.mark.parametrize("uri", ["s3:", "s3:/d/current.json", "S3://bucket/key", "ftp://bucket/key"])
def test_what_looks_like_a_store_is_no_local_folder(uri: str) -> None:
    with pytest.raises(BadInputError, match="use a local path, s3://, gs://"):
        store.exists(uri)


@pytest.mark.parametrize("endpoint", ["nonsense", "host:9000", "http://", "ftp//x"])
def test_an_endpoint_that_is_no_url_fails_without_retry(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    client.cache_clear()
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL"):
        store.exists("s3://bucket/key")
    client.cache_clear()


def test_the_password_of_an_endpoint_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    error = EndpointConnectionError(endpoint_url="http://user:secret@host/")
    with pytest.raises(TransientError, match=r"user:\*\*\*@host"), s3_errors("s3://bucket/key"):
        raise error
