"""The interface of a store, and what its implementations share."""

import builtins
import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from retro_ops.errors import BadInputError, TransientError


class ConflictError(TransientError):
    """A compare-and-swap failed: another writer changed the object in between."""


@dataclass(frozen=True)
class Written:
    """An object as it was stored."""

    uri: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Stored:
    """An object in the store. ``modified``: seconds since 1970, by the store's clock."""

    uri: str
    bytes: int
    modified: float


class Writer(Protocol):
    """Streams one object into the store; nothing is visible before ``close``."""

    def write(self, data: bytes | memoryview) -> None: ...

    def set_head(self, data: bytes) -> None:
        """Replace the first bytes that were written (at most 16 MiB), for headers that are known last."""

    def close(self) -> Written: ...

    def abort(self) -> None: ...


class Store(Protocol):
    def exists(self, uri: str) -> bool: ...

    def size(self, uri: str) -> int:
        """Length in bytes; BadInputError when there is no such object."""

    def read(self, uri: str) -> bytes: ...

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        """The first ``length`` bytes (fewer if the object is shorter) and the length of the object, in one request."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``, else BadInputError."""

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        """Content and the tag for ``write_if``; None when there is no such object."""

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        """Write only if the object still has ``tag`` (None: if it does not exist); otherwise ConflictError."""

    def create(self, uri: str) -> Writer: ...

    def open(self, uri: str) -> IO[bytes]:
        """Sequential reader."""

    def canonical(self, uri: str) -> str:
        """The same text for all URIs of one object."""

    def delete(self, uri: str) -> None: ...

    def delete_folder(self, folder: str) -> None:
        """Delete all objects below ``folder``."""

    def objects(self, folder: str) -> builtins.list[Stored]:
        """All objects below ``folder``, sorted by URI."""

    def list(self, folder: str) -> builtins.list[str]:
        """URIs of all objects below ``folder``, sorted."""

    def fingerprint(self, uri: str) -> str:
        """Text that identifies the content of the object, independent of its name and time."""

    def fingerprint_of(self, written: Written) -> str:
        """Fingerprint of an object that was just written, without reading it."""


def hash_stream(stream: IO[bytes]) -> str:
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def aborted_unless_closed(writer: Writer) -> Iterator[Writer]:
    try:
        yield writer
    except BaseException:
        writer.abort()
        raise


def missing(uri: str) -> BadInputError:
    return BadInputError(f"{uri} does not exist", "check the path; if a stage should have written it, run that first")


def taken_over(uri: str) -> TransientError:
    """For two runs that build the same output at once: the one that began later removes the work of the other."""
    return TransientError(f"another writer of {uri} took over", "run again: it may be done by then")


def exactly(uri: str, data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise BadInputError(f"{uri} is shorter than its header says: expected {length} bytes, got {len(data)}")
    return data
