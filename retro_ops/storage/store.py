"""Object storage behind one small interface: local files and S3, both named by URI.

Writes are atomic: an object is either there in full or not at all. S3 goes through boto3, which
reads credentials and ``AWS_ENDPOINT_URL`` from the environment, so no secret passes through here.
"""

import builtins
import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import io
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from retro_ops.errors import BadInputError, ConfigurationError, TransientError
from retro_ops.uris import parent, split_scheme

PART_BYTES = 16 * 2**20
"""Multipart size: S3 allows 10,000 parts, so objects up to 160 GB of unknown length."""

PARTS_IN_FLIGHT = 3
"""Each holds PART_BYTES."""

READ_AHEAD_BYTES = 8 * 2**20


PASSING_REFUSALS = frozenset({"RequestTimeout", "BadDigest", "IncompleteBody", "ExpiredToken"})
"""Answers of the 400s that a retry may not meet again."""


class ConflictError(TransientError):
    """A compare-and-swap lost: somebody else wrote the object in between."""


@dataclass(frozen=True)
class Written:
    """An object as it was stored."""

    uri: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """An object that is there. ``modified``: seconds since 1970, by the store's clock."""

    uri: str
    bytes: int
    modified: float


class Writer(Protocol):
    """Streams one object into the store; nothing is visible before ``close``."""

    def write(self, data: bytes | memoryview) -> None: ...

    def set_head(self, data: bytes) -> None:
        """Replace the first bytes (at most one part) of what was written; for headers known last."""

    def close(self) -> Written: ...

    def abort(self) -> None: ...


class Store(Protocol):
    def exists(self, uri: str) -> bool: ...

    def size(self, uri: str) -> int:
        """Length in bytes; BadInputError when there is no such object."""

    def read(self, uri: str) -> bytes: ...

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        """The first ``length`` bytes, fewer if there are no more, and the length of the whole; in one request."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``, else BadInputError."""

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        """Content and the tag for ``write_if``; None when there is no such object."""

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        """Write only if the object still has ``tag`` (None: does not exist), else ConflictError."""

    def create(self, uri: str) -> Writer: ...

    def delete(self, uri: str) -> None: ...

    def delete_folder(self, folder: str) -> None:
        """Delete all objects below ``folder``."""

    def objects(self, folder: str) -> builtins.list[Stored]:
        """All objects below ``folder``, sorted by URI."""

    def list(self, folder: str) -> builtins.list[str]:
        """Their URIs."""

    def fingerprint(self, uri: str) -> str:
        """Identifies the content of the object, whatever its name and time."""

    def fingerprint_of(self, written: Written) -> str:
        """The same of what was just written, without reading it again."""


def at(uri: str) -> Store:
    """The store that holds ``uri``: ``s3://…`` or a local path."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if scheme == "":
        return _LOCAL
    if scheme == "s3":
        return _S3
    raise BadInputError(f"cannot open {uri!r}", "use a local path or s3://bucket/key")


def exists(uri: str) -> bool:
    return at(uri).exists(uri)


def read(uri: str) -> bytes:
    return at(uri).read(uri)


def write(uri: str, data: bytes) -> Written:
    with create(uri) as writer:
        writer.write(data)
        return writer.close()


LOOKUPS = 32
"""Small requests at a time, where many are to be made: each waits for the store most of its time."""

READERS = 8
"""Files read at a time, where each is read in full: each has AHEAD blocks of its own in memory."""

AHEAD = 4
"""Reads in flight: enough to hide a store's delay behind work, few enough to hold."""

T = TypeVar("T")
Item = TypeVar("Item")


def ahead(reads: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """What ``reads`` give, in order; up to AHEAD of them run, or wait to be taken, while the caller works."""
    with ThreadPoolExecutor(AHEAD) as pool:
        running: deque[Future[T]] = deque()
        for read in reads:
            running.append(pool.submit(read))
            if len(running) >= AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def side_by_side(work: Callable[[Item], T], items: Iterable[Item], at_once: int = LOOKUPS) -> builtins.list[T]:
    """``work`` of each of ``items``, in order."""
    with ThreadPoolExecutor(at_once) as pool:
        return builtins.list(pool.map(work, items))


@contextlib.contextmanager
def create(uri: str) -> Iterator[Writer]:
    """A writer that is aborted unless it was closed."""
    writer = at(uri).create(uri)
    try:
        yield writer
    except BaseException:
        writer.abort()
        raise


def same_object(a: str, b: str) -> bool:
    """Whether two URIs name one object, however a local path is written."""
    return canonical(a) == canonical(b)


def canonical(uri: str) -> str:
    """The same for all URIs of one object."""
    return os.path.realpath(uri) if at(uri) is _LOCAL else uri


def sha256(uri: str) -> str:
    """SHA-256 of the stored content, streamed."""
    return _hash_stream(open_stream(uri))


def open_stream(uri: str) -> IO[bytes]:
    """Sequential reader. On S3 it reads ranges, each with retries, so it outlives idle connections."""
    if at(uri) is _LOCAL:
        with _local_errors(uri):
            return open(uri, "rb")
    return io.BufferedReader(_RangeStream(uri))


def _hash_stream(stream: IO[bytes]) -> str:
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


class _RangeStream(io.RawIOBase):
    def __init__(self, uri: str) -> None:
        self._store = at(uri)
        first, size = self._store.head(uri, READ_AHEAD_BYTES)
        ranges = ((start, min(READ_AHEAD_BYTES, size - start)) for start in range(len(first), size, READ_AHEAD_BYTES))
        self._chunks = ahead(functools.partial(self._store.read_range, uri, *of) for of in ranges)
        self._rest = memoryview(first)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        length = min(len(buffer), len(self._rest))
        buffer[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length

    def close(self) -> None:
        self._chunks.close()
        super().close()


class LocalStore:
    """Files. A new file gets its name by rename after fsync, so a crash leaves none half-written."""

    def exists(self, uri: str) -> bool:
        return os.path.isfile(uri)

    def size(self, uri: str) -> int:
        with _local_errors(uri):
            return os.stat(uri).st_size

    def read(self, uri: str) -> bytes:
        with _local_errors(uri):
            return Path(uri).read_bytes()

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        with _local_errors(uri), open(uri, "rb") as file:
            return file.read(length), os.fstat(file.fileno()).st_size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with _local_errors(uri), open(uri, "rb") as file:
            file.seek(start)
            return _exactly(uri, file.read(length), length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        if not self.exists(uri):
            return None
        data = self.read(uri)
        return data, hashlib.sha256(data).hexdigest()

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        os.makedirs(parent(uri), exist_ok=True)
        with open(f"{uri}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read_tagged(uri)
            if (found[1] if found else None) != tag:
                raise ConflictError(f"{uri} was changed by somebody else", "run again")
            write(uri, data)

    def create(self, uri: str) -> Writer:
        with _local_errors(uri):
            return _LocalWriter(uri)

    def delete(self, uri: str) -> None:
        with _local_errors(uri):
            Path(uri).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        # Somebody may be writing into it; what stays is litter, not an error.
        shutil.rmtree(folder, ignore_errors=True)

    def objects(self, folder: str) -> builtins.list[Stored]:
        found = []
        for uri in self.list(folder):
            with contextlib.suppress(FileNotFoundError):  # Removed meanwhile.
                stat = os.stat(uri)
                found.append(Stored(uri, stat.st_size, stat.st_mtime))
        return found

    def list(self, folder: str) -> builtins.list[str]:
        return sorted(
            os.path.join(base, name)
            for base, _, names in os.walk(folder)
            for name in names
            if not name.endswith(_LocalWriter.SUFFIX)
        )

    def fingerprint(self, uri: str) -> str:
        with _local_errors(uri):
            return f"sha256:{_hash_stream(open(uri, 'rb'))}"

    def fingerprint_of(self, written: Written) -> str:
        return f"sha256:{written.sha256}"


class _LocalWriter:
    SUFFIX = ".unfinished"

    def __init__(self, uri: str) -> None:
        folder, name = os.path.split(uri)
        os.makedirs(folder or ".", exist_ok=True)
        for leftover in Path(folder).glob(f".{glob.escape(name)}.*{self.SUFFIX}"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        self._uri = uri
        self._temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}{self.SUFFIX}")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by close() or abort()
        self._hash: Any = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        with _local_errors(self._uri):
            self._file.write(data)
        if self._hash:
            self._hash.update(data)

    def set_head(self, data: bytes) -> None:
        with _local_errors(self._uri):
            self._file.seek(0)
            self._file.write(data)
            self._file.seek(0, os.SEEK_END)
        self._hash = None

    def close(self) -> Written:
        with _local_errors(self._uri):
            size = self._file.tell()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            checksum = self._hash.hexdigest() if self._hash else sha256(self._temporary)
            try:
                os.replace(self._temporary, self._uri)
            except FileNotFoundError as error:
                raise _taken_over(self._uri) from error
        return Written(self._uri, size, checksum)

    def abort(self) -> None:
        self._file.close()
        Path(self._temporary).unlink(missing_ok=True)


class S3Store:
    """S3 and whatever speaks its protocol."""

    def exists(self, uri: str) -> bool:
        return self._head(uri) is not None

    def size(self, uri: str) -> int:
        head = self._head(uri)
        if head is None:
            raise _missing(uri)
        return int(head["ContentLength"])

    def read(self, uri: str) -> bytes:
        return self._get(uri, {})

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        from botocore.exceptions import ClientError

        with _s3_errors(uri):
            try:
                response = _client().get_object(**_bucket_key(uri), Range=f"bytes=0-{length - 1}")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 416:  # It is empty.
                    return b"", 0
                raise
            data = bytes(response["Body"].read())
        # "bytes 0-99/1234"; a server that gave all of it may leave it out.
        return data, int(response.get("ContentRange", f"/{len(data)}").rpartition("/")[2])

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        return _exactly(uri, self._get(uri, {"Range": f"bytes={start}-{start + length - 1}"}), length)

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

    def create(self, uri: str) -> Writer:
        return _S3Writer(uri)

    def delete(self, uri: str) -> None:
        with _s3_errors(uri):
            _client().delete_object(**_bucket_key(uri))

    def delete_folder(self, folder: str) -> None:
        for uri in self.list(folder):
            self.delete(uri)

    def objects(self, folder: str) -> builtins.list[Stored]:
        bucket, prefix = _bucket_key(folder.rstrip("/") + "/").values()
        with _s3_errors(folder):
            pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            found = (entry for page in pages for entry in page.get("Contents", ()))
            return sorted(
                (Stored(f"s3://{bucket}/{e['Key']}", int(e["Size"]), e["LastModified"].timestamp()) for e in found),
                key=lambda stored: stored.uri,
            )

    def list(self, folder: str) -> builtins.list[str]:
        return [stored.uri for stored in self.objects(folder)]

    def fingerprint(self, uri: str) -> str:
        head = self._head(uri)
        if head is None:
            raise _missing(uri)
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
    """Multipart upload, a few parts at a time. The first is held back until ``close``, so its head may still change."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._target = _bucket_key(uri)
        self._first: bytearray | None = None
        self._buffer = bytearray()
        self._parts: list[dict[str, Any]] = []
        self._next = 1
        self._upload: str | None = None
        self._bytes = 0
        self._hash: Any = hashlib.sha256()
        self._sender = ThreadPoolExecutor(PARTS_IN_FLIGHT)
        self._sending: deque[Future[None]] = deque()

    def write(self, data: bytes | memoryview) -> None:
        self._buffer += data
        self._bytes += len(data) if isinstance(data, bytes) else data.nbytes
        if self._hash:
            self._hash.update(data)
        while len(self._buffer) >= PART_BYTES:
            part, self._buffer = self._buffer[:PART_BYTES], self._buffer[PART_BYTES:]
            if self._first is None:
                self._first = part
            else:
                self._send(part)

    def set_head(self, data: bytes) -> None:
        first = self._buffer if self._first is None else self._first
        first[: len(data)] = data
        self._hash = None

    def close(self) -> Written:
        with _s3_errors(self._uri):
            if self._first is None:
                _client().put_object(**self._target, Body=bytes(self._buffer))
            else:
                if self._buffer:
                    self._send(self._buffer)
                self._send(self._first, number=1)
                while self._sending:
                    self._sending.popleft().result()
                self._parts.sort(key=lambda part: int(part["PartNumber"]))
                _client().complete_multipart_upload(
                    **self._target, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
                )
                self._upload = None  # nothing left to abort
        self._sender.shutdown()
        stored = at(self._uri).size(self._uri)
        if stored != self._bytes:
            raise TransientError(f"{self._uri}: wrote {self._bytes} bytes, the store holds {stored}", "run again")
        return Written(self._uri, self._bytes, self._hash.hexdigest() if self._hash else sha256(self._uri))

    def abort(self) -> None:
        self._sender.shutdown(cancel_futures=True)
        if self._upload:
            with _s3_errors(self._uri):
                _client().abort_multipart_upload(**self._target, UploadId=self._upload)

    def _send(self, data: bytearray, number: int | None = None) -> None:
        if self._upload is None:
            with _s3_errors(self._uri):
                self._abort_leftovers()
                self._upload = _client().create_multipart_upload(**self._target)["UploadId"]
        if number is None:
            self._next += 1
        if len(self._sending) >= PARTS_IN_FLIGHT:
            self._sending.popleft().result()
        self._sending.append(self._sender.submit(self._upload_part, number or self._next, data))

    def _upload_part(self, number: int, data: bytearray) -> None:
        with _s3_errors(self._uri):
            tag = _client().upload_part(**self._target, UploadId=self._upload, PartNumber=number, Body=bytes(data))[
                "ETag"
            ]
        self._parts.append({"PartNumber": number, "ETag": tag})

    def _abort_leftovers(self) -> None:
        """A writer that was killed leaves parts that nobody sees and somebody pays for."""
        bucket, key = self._target["Bucket"], self._target["Key"]
        for upload in _client().list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", ()):
            if upload["Key"] == key:
                _client().abort_multipart_upload(**self._target, UploadId=upload["UploadId"])


@functools.cache
def _client() -> Any:
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "max_attempts": 8}, max_pool_connections=LOOKUPS)
    # A session of its own: the default one keeps the first credentials it ever saw.
    return boto3.session.Session().client("s3", config=config)


def _bucket_key(uri: str) -> dict[str, str]:
    prefix, key = split_scheme(uri)
    return {"Bucket": prefix.removeprefix("s3://"), "Key": key.removeprefix("/")}


def _missing(uri: str) -> BadInputError:
    return BadInputError(f"{uri} does not exist", "check the path; if a stage should have written it, run that first")


def _taken_over(uri: str) -> TransientError:
    """Two runs may build the same output at once; the one that began later sweeps the other away."""
    return TransientError(f"another writer of {uri} took over", "run again: it may be done by then")


def _exactly(uri: str, data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise BadInputError(f"{uri} is shorter than its header says: wanted {length} bytes, got {len(data)}")
    return data


@contextlib.contextmanager
def _local_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _missing(uri) from error
    except PermissionError as error:
        raise ConfigurationError(f"no permission for {uri}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TransientError(f"no space left to write {uri}", "free some space; nothing was lost") from error
        raise


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        code = error.response["Error"].get("Code", "")
        if code == "NoSuchUpload":
            raise _taken_over(uri) from error
        if status == 404:
            raise _missing(uri) from error
        if status in (409, 412):
            raise ConflictError(f"{uri} was changed by somebody else", "run again") from error
        if status in (400, 401, 403) and code not in PASSING_REFUSALS:
            raise ConfigurationError(
                f"the store refused {uri}: {code}", "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the policy"
            ) from error
        if status == 416:
            raise BadInputError(f"{uri} is shorter than its header says") from error
        raise TransientError(f"the store failed on {uri}: {error}") from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise ConfigurationError(
            f"no credentials for {uri}", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL)"
        ) from error
    except exceptions.BotoCoreError as error:
        raise TransientError(f"cannot reach the store of {uri}: {error}", "check AWS_ENDPOINT_URL") from error


_LOCAL = LocalStore()
_S3 = S3Store()
