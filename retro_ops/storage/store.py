"""Object storage behind one small interface: local files and S3, both named by URI.

Writes are atomic: an object is either there in full or not at all. S3 goes through boto3, which
reads credentials and ``AWS_ENDPOINT_URL`` from the environment, so no secret passes through here.
"""

from contextlib import AbstractContextManager
from typing import IO

from retro_ops.errors import BadInputError
from retro_ops.storage.base import Store, Writer, Written, aborted_unless_closed, hash_stream
from retro_ops.storage.local import LocalStore
from retro_ops.storage.s3 import S3Store


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


def create(uri: str) -> AbstractContextManager[Writer]:
    """A writer that is aborted if the block ends in an error."""
    return aborted_unless_closed(at(uri).create(uri))


def same_object(a: str, b: str) -> bool:
    """Whether two URIs name one object, however a local path is written."""
    return canonical(a) == canonical(b)


def canonical(uri: str) -> str:
    """One text for all URIs of the same object."""
    return at(uri).canonical(uri)


def sha256(uri: str) -> str:
    """SHA-256 of the stored content, streamed."""
    return hash_stream(open_stream(uri))


def open_stream(uri: str) -> IO[bytes]:
    """Sequential reader."""
    return at(uri).open(uri)


_LOCAL = LocalStore()
_S3 = S3Store()
