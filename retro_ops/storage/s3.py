"""A store on S3, or a server with the same protocol, through boto3."""

import builtins
import contextlib
import functools
import hashlib
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from retro_ops.errors import BadInputError, ConfigurationError, RetroError, TransientError
from retro_ops.storage.base import ConflictError, Stored, Writer, Written, exactly, hash_stream, missing, taken_over
from retro_ops.storage.read_ahead import LOOKUPS, READERS, RangeStream, side_by_side
from retro_ops.uris import split_scheme

PART_BYTES = 16 * 2**20
"""Least size of the parts of a multipart upload, except for the last one. See ``part_bytes``."""

PARTS_OF_ONE_SIZE = 900

MOST_PARTS = 10_000
MOST_PART_BYTES = 5 * 2**30
MOST_BYTES = 5 * 2**40
"""Limits of S3: parts of an object, bytes of a part, bytes of an object."""

PARTS_IN_FLIGHT = 3
"""Parts of the first size that are sent at a time, or as many larger ones as take no more memory, but at least one."""

DELETED_AT_ONCE = 1000
"""Most objects that S3 deletes in one request."""

NO_BATCHES = (400, 405, 411, 501)
"""Answers of stores that know no such request, or not its checksum: MethodNotAllowed, NotImplemented and others."""

TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "BadDigest", "IncompleteBody", "InvalidPart", "XAmzContentSHA256Mismatch", "ExpiredToken"}
    | {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
)
"""Refusals with a status of the 400s that a retry may not meet again."""

WRONG_SETTINGS = (
    *("ConfigNotFound", "ConfigParseError", "ProfileNotFound", "NoRegionError", "InvalidRegionError"),
    *("UnsupportedS3ArnError", "UnsupportedS3ConfigurationError", "InvalidRetryModeError"),
)
"""Errors of botocore that no retry can help, besides a ValueError about the endpoint."""

SETTINGS = "check AWS_ENDPOINT_URL (http://host:port), AWS_DEFAULT_REGION and AWS_PROFILE"

CREDENTIAL_CODES = frozenset(
    {"AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
    | {"InvalidToken", "TokenRefreshRequired", "InvalidSecurity", "MissingSecurityHeader", "NotSignedUp"}
    | {"CredentialsNotSupported", "MissingAuthenticationToken", "UnauthorizedAccess", "Unauthorized", "Forbidden"}
)
"""Refusals that concern the keys or the policy. Answers without a body (to HEAD) have only a status: 401 or 403."""

CHECKSUM_WORDS = ("checksum", "trailer", "aws-chunked", "x-amz-content-sha256", "streaming-unsigned")
"""Words in the answers of stores that do not know the checksums which clients send since 2025."""

CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"


def part_bytes(number: int, length: int | None = None) -> int:
    """Size of part ``number`` (from 1) of an object of ``length`` bytes.

    Of a known length: 16 MiB, or more if 10,000 parts of 16 MiB (156 GiB) are too few; at most 525 MiB. Of an unknown
    length: 16 MiB, then 32, 80, 160 MiB and so on. The first 900 parts (14 GiB) are small, so that most objects take
    little memory; the growth is quadratic, so that 10,000 parts hold more than 5 TiB and the last one is below 2 GiB.
    """
    if length is not None:
        return max(PART_BYTES, -(-length // MOST_PARTS))
    return PART_BYTES * (1 + (number // PARTS_OF_ONE_SIZE) ** 2)


class S3Store:
    """Objects on S3 or a server with the same protocol."""

    def exists(self, uri: str) -> bool:
        return self._head(uri) is not None

    def size(self, uri: str) -> int:
        head = self._head(uri)
        if head is None:
            raise missing(uri)
        return int(head["ContentLength"])

    def read(self, uri: str) -> bytes:
        return self._get(uri, {})

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        from botocore.exceptions import ClientError

        with _s3_errors(uri):
            try:
                response = _client().get_object(**_bucket_key(uri), Range=f"bytes=0-{length - 1}")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:  # The object is empty.
                    return b"", 0
                raise
            data = bytes(response["Body"].read())
        # "bytes 0-99/1234"; a server that returned the whole object may omit it.
        return data, int(response.get("ContentRange", f"/{len(data)}").rpartition("/")[2])

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        return exactly(uri, self._get(uri, {"Range": f"bytes={start}-{start + length - 1}"}), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        with _s3_errors(uri):
            try:
                response = _client().get_object(**_bucket_key(uri))
                return response["Body"].read(), response["ETag"]
            except _client().exceptions.NoSuchKey:
                return None

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with _s3_errors(uri):
            _client().put_object(**_bucket_key(uri), Body=data, **condition)

    def accepts(self, uri: str, *, checksums: bool, conditional: bool) -> bool:
        """Whether the store takes a small object at ``uri``, which is overwritten or must not exist yet."""
        condition = {"IfNoneMatch": "*"} if conditional else {}
        try:
            with _s3_errors(uri):
                _client(checksums=checksums).put_object(**_bucket_key(uri), Body=b"1", **condition)
        except RetroError:
            return False
        return True

    def create(self, uri: str, length: int | None = None) -> Writer:
        return _S3Writer(self, uri, length)

    def open(self, uri: str) -> IO[bytes]:
        """A sequential reader. It reads ranges, each with retries, so it survives idle connections."""
        return io.BufferedReader(RangeStream(self, uri))

    def canonical(self, uri: str) -> str:
        return uri

    def delete(self, uri: str) -> None:
        with _s3_errors(uri):
            _client().delete_object(**_bucket_key(uri))

    def delete_all(self, uris: Sequence[str]) -> None:
        batches = [uris[start : start + DELETED_AT_ONCE] for start in range(0, len(uris), DELETED_AT_ONCE)]
        left = side_by_side(_delete_batch, batches, READERS)
        side_by_side(self.delete, itertools.chain.from_iterable(left))

    def delete_folder(self, folder: str) -> None:
        self.delete_all(self.list(folder))

    def objects(self, folder: str) -> builtins.list[Stored]:
        bucket, prefix = _bucket_key(folder.rstrip("/") + "/").values()
        with _s3_errors(folder):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            found = (entry for page in pages for entry in page.get("Contents", ()))
            return sorted(
                (Stored(f"s3://{bucket}/{e['Key']}", int(e["Size"]), e["LastModified"].timestamp()) for e in found),
                key=lambda stored: stored.uri,
            )

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return [stored.uri for stored in self.objects(folder)]

    def folders(self, folder: str) -> builtins.list[str]:
        bucket, prefix = _bucket_key(folder.rstrip("/") + "/").values()
        with _s3_errors(folder):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(name[len(prefix) :].rstrip("/") for name in found)

    def fingerprint(self, uri: str) -> str:
        head = self._head(uri)
        if head is None:
            raise missing(uri)
        return f"etag:{head['ETag'].strip(chr(34))}:{head['ContentLength']}"

    def fingerprint_of(self, written: Written) -> str:
        return self.fingerprint(written.uri)

    def _head(self, uri: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with _s3_errors(uri):
            try:
                return dict(_client().head_object(**_bucket_key(uri)))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    def _get(self, uri: str, options: dict[str, str]) -> bytes:
        with _s3_errors(uri):
            return bytes(_client().get_object(**_bucket_key(uri), **options)["Body"].read())


class _S3Writer:
    """Multipart upload, a few parts at a time. The first is held back until ``close``, so its head can change.

    In memory are the first part, the one that is being filled, and those that are being sent: PARTS_IN_FLIGHT times
    PART_BYTES, or one part if it is larger.
    """

    def __init__(self, store: S3Store, uri: str, length: int | None) -> None:
        self._store = store
        self._uri = uri
        self._length = length
        if length is not None and length > MOST_BYTES:
            raise _too_large(uri, f"{length:,} bytes")
        self._target = _bucket_key(uri)
        self._first: bytearray | None = None
        self._buffer = bytearray()
        self._number = 1  # of the part that is being filled
        self._sent: list[dict[str, Any]] = []
        self._upload: str | None = None
        self._bytes = 0
        self._hash: Any = hashlib.sha256()
        self._sender = ThreadPoolExecutor(PARTS_IN_FLIGHT)
        self._sending: deque[tuple[int, Future[None]]] = deque()  # Bytes of each part, in order.

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B")
        self._bytes += len(rest)
        if self._bytes > MOST_BYTES:
            raise _too_large(self._uri, f"more than {MOST_BYTES:,} bytes")
        if self._hash:
            self._hash.update(rest)
        while rest:
            size = part_bytes(self._number, self._length)
            room = size - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == size:
                self._next_part()

    def set_head(self, data: bytes) -> None:
        first = self._buffer if self._first is None else self._first
        first[: len(data)] = data
        self._hash = None

    def close(self) -> Written:
        with _s3_errors(self._uri):
            if self._first is None:
                _client().put_object(**self._target, Body=self._buffer)
            else:
                if self._buffer:
                    self._send(self._number, self._buffer)
                self._send(1, self._first)
                self._wait_until_in_flight(0)
                self._sent.sort(key=lambda part: int(part["PartNumber"]))
                _client().complete_multipart_upload(
                    **self._target, UploadId=self._upload, MultipartUpload={"Parts": self._sent}
                )
                self._upload = None  # nothing left to abort
        self._sender.shutdown()
        stored = self._store.size(self._uri)
        if stored != self._bytes:
            raise TransientError(
                f"{self._uri}: wrote {self._bytes} bytes, but the store has {stored}", "run the stage again"
            )
        return Written(
            self._uri, self._bytes, self._hash.hexdigest() if self._hash else hash_stream(self._store.open(self._uri))
        )

    def abort(self) -> None:
        self._sender.shutdown(cancel_futures=True)
        if self._upload:
            with _s3_errors(self._uri):
                _client().abort_multipart_upload(**self._target, UploadId=self._upload)

    def _next_part(self) -> None:
        if self._first is None:
            self._first = self._buffer
        else:
            self._send(self._number, self._buffer)
        self._buffer = bytearray()
        self._number += 1

    def _send(self, number: int, data: bytearray) -> None:
        if self._upload is None:
            with _s3_errors(self._uri):
                self._abort_leftovers()
                self._upload = _client().create_multipart_upload(**self._target)["UploadId"]
        self._wait_until_in_flight(PARTS_IN_FLIGHT * PART_BYTES - len(data))
        self._sending.append((len(data), self._sender.submit(self._upload_part, number, data)))

    def _wait_until_in_flight(self, most_bytes: int) -> None:
        while self._sending and sum(size for size, _ in self._sending) > most_bytes:
            self._sending.popleft()[1].result()

    def _upload_part(self, number: int, data: bytearray) -> None:
        with _s3_errors(self._uri):
            answer = _client().upload_part(**self._target, UploadId=self._upload, PartNumber=number, Body=data)
        self._sent.append({"PartNumber": number, "ETag": answer["ETag"]})

    def _abort_leftovers(self) -> None:
        """Abort uploads of writers that were killed: their parts are invisible but still cost money."""
        bucket, key = self._target["Bucket"], self._target["Key"]
        for upload in _client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", ()):
            if upload["Key"] == key:
                _client().abort_multipart_upload(**self._target, UploadId=upload["UploadId"])


def _too_large(uri: str, size: str) -> BadInputError:
    return BadInputError(
        f"{uri} would have {size}; S3 stores at most {MOST_BYTES:,} as one object",
        "make it smaller: more and smaller shards, or an index type with shorter codes",
    )


def _delete_batch(uris: Sequence[str]) -> list[str]:
    """Delete objects in one request. Returns those that are left, for requests of their own: all of them if the store
    does not know this request, else those that it names in its answer."""
    from botocore.exceptions import ClientError

    by_key = {_bucket_key(uri)["Key"]: uri for uri in uris}
    named = {"Objects": [{"Key": key} for key in by_key], "Quiet": True}
    with _s3_errors(uris[0]):
        try:
            answer = _client().delete_objects(Bucket=_bucket_key(uris[0])["Bucket"], Delete=named)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in NO_BATCHES:
                return list(uris)
            raise
    return [by_key[failed["Key"]] for failed in answer.get("Errors", ())]


@functools.cache
def _client(*, checksums: bool = True) -> Any:
    """``checksums``: as the environment says, by default with every request; otherwise only where S3 requires them."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 8}, max_pool_connections=READERS * LOOKUPS)
    if not checksums:
        config = config.merge(Config(request_checksum_calculation="when_required"))
    # A new session, because the default one keeps the first credentials that it saw.
    return boto3.session.Session().client("s3", config=config)


def _bucket_key(uri: str) -> dict[str, str]:
    prefix, key = split_scheme(uri)
    bucket, key = prefix.removeprefix("s3://"), key.removeprefix("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise BadInputError(f"{uri!r} is not a location in S3", "write it like s3://bucket/key, without ARNs")
    if any(character < " " or "\ud800" <= character <= "\udfff" for character in key):
        raise BadInputError(f"{uri!r} is not a location in S3", "use a key without control characters")
    return {"Bucket": bucket, "Key": key}


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _refusal(uri, error) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise ConfigurationError(
            f"no credentials for {uri}", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL)"
        ) from error
    except exceptions.ParamValidationError as error:
        raise BadInputError(f"{uri} is not a location in S3: {error}", "write it like s3://bucket/key") from error
    except ValueError as error:
        if "endpoint" not in str(error):
            raise
        raise ConfigurationError(f"cannot use the store of {uri}: {error}", SETTINGS) from error
    except exceptions.BotoCoreError as error:
        if type(error).__name__ in WRONG_SETTINGS:
            raise ConfigurationError(f"cannot use the store of {uri}: {error}", SETTINGS) from error
        raise TransientError(f"cannot reach the store of {uri}: {error}", "check AWS_ENDPOINT_URL") from error


def _refusal(uri: str, error: Any) -> RetroError:
    """The error to raise for ``error``, botocore's ClientError: an answer of the store that is not a success."""
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    code = error.response["Error"].get("Code", "")
    answer = ": ".join(filter(None, (code or str(status), error.response["Error"].get("Message"))))
    if code == "NoSuchUpload":
        return taken_over(uri)
    if status == 404:
        return missing(uri)
    if status in (409, 412):
        return ConflictError(f"{uri} was changed by another process", "run the command again")
    if status == 416:
        return BadInputError(f"{uri} is shorter than its header says")
    if status == 501 or code == "NotImplemented":
        return ConfigurationError(
            f"the store does not implement a request for {uri}: {answer}",
            f"use another store, or, if that concerns checksums, set {CHECKSUMS}",
        )
    if status not in range(300, 500) or status in (408, 429) or code in TRANSIENT_CODES:
        return TransientError(f"the store failed on {uri}: {answer}")
    if any(word in answer.lower() for word in CHECKSUM_WORDS):
        return ConfigurationError(f"the store refused {uri}: {answer}", f"it may not know checksums: set {CHECKSUMS}")
    if status in (401, 403) or code in CREDENTIAL_CODES:
        return ConfigurationError(
            f"the store refused {uri}: {answer}",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the policy (and the clock of this machine)",
        )
    return ConfigurationError(
        f"the store refused {uri}: {answer}",
        "this is not about credentials: check the bucket, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and the store's limits",
    )
