"""The interface of a store, and helpers that its implementations share."""

import builtins
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from retro_ops.errors import BadInputError, TransientError


class ConflictError(TransientError):
    """Another process wrote the object meanwhile, so a compare-and-swap failed or an upload ended."""


@dataclass(frozen=True)
class Written:
    """Location, length and checksum of an object that was just written."""

    uri: str
    bytes: int
    sha256: str
    tag: str | None = None
    """Its fingerprint, if the store compared what it received with a checksum. Content with this fingerprint is that
    with ``sha256``, without reading it."""


@dataclass(frozen=True)
class Stored:
    """An object in a listing."""

    uri: str
    bytes: int
    modified: float
    """Seconds since 1970, by the store's clock."""


class Writer(Protocol):
    """Streams one object into the store; nothing is visible before ``close``."""

    def write(self, data: bytes | memoryview) -> None: ...

    def set_head(self, data: bytes) -> None:
        """Replace the first bytes (at most one part) of the object, for headers that are known only at the end."""

    def close(self) -> Written: ...

    def abort(self) -> None: ...


class Store(Protocol):
    """Objects by URI. Methods that read raise BadInputError if there is no such object."""

    def exists(self, uri: str) -> bool: ...

    def size(self, uri: str) -> int:
        """Length in bytes."""

    def read(self, uri: str) -> bytes: ...

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        """The first ``length`` bytes (fewer if the object is shorter) and the length of the object, in one request."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``; BadInputError if the object is shorter."""

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        """Content and the tag for ``write_if``; None if there is no such object."""

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        """Write if the object still has ``tag`` (None: if it does not exist), else raise ConflictError."""

    def create(self, uri: str, length: int | None = None) -> Writer:
        """A writer for a new object of ``length`` bytes (None: unknown). BadInputError if the store cannot hold it."""

    def open(self, uri: str) -> IO[bytes]:
        """Sequential reader."""

    def canonical(self, uri: str) -> str:
        """The same text for all URIs of one object."""

    def delete(self, uri: str) -> None: ...

    def delete_all(self, uris: Sequence[str]) -> None:
        """Delete objects of one bucket or file system, in any order. Missing ones are no error."""

    def delete_folder(self, folder: str) -> None:
        """Delete all objects below ``folder``."""

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        """All objects below ``folder``, sorted by URI. ``follow_links``: also those in linked folders, where the store
        has links."""

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        """URIs of the ``objects``."""

    def folders(self, folder: str) -> builtins.list[str]:
        """Names of the folders directly in ``folder``, sorted; their content is not listed."""

    def fingerprint(self, uri: str) -> str:
        """A text that identifies the content of the object, independent of its name and time."""

    def fingerprint_of(self, written: Written) -> str:
        """The fingerprint of an object that was just written, without reading it again."""


def hash_stream(stream: IO[bytes]) -> str:
    """SHA-256 of the rest of ``stream``, which this closes."""
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


@contextlib.contextmanager
def aborted_unless_closed(writer: Writer) -> Iterator[Writer]:
    """``writer``, aborted if the block raises an exception."""
    try:
        yield writer
    except BaseException:
        writer.abort()
        raise


def missing(uri: str) -> BadInputError:
    """The error for an object that does not exist."""
    return BadInputError(f"{uri} does not exist", "check the path; if a stage writes this file, run that stage first")


def taken_over(uri: str) -> ConflictError:
    """The error for a writer that lost: of two runs that write the same output, the one that started later wins."""
    return ConflictError(
        f"another writer of {uri} took over", "run the stage again; the output may be finished by then"
    )


def exactly(uri: str, data: bytes, length: int) -> bytes:
    """``data``, or BadInputError if it does not have ``length`` bytes."""
    if len(data) != length:
        message = f"{uri} is shorter than its header says: expected {length} bytes, got {len(data)}"
        raise BadInputError(message, "the file is truncated: build it again")
    return data
