"""The part of a store that reads by range, for places where nothing can be written."""

import builtins
import hashlib
import io
from collections.abc import Sequence
from typing import IO, Any

from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.storage.base import Stored, Writer, Written, exactly
from retro_ops.storage.read_ahead import RangeStream


class ReadOnlyStore:
    """Reads through ``head``, ``fetch``, ``list`` and ``fingerprint`` of a subclass; refuses to write."""

    def fetch(self, uri: str, start: int, length: int) -> tuple[bytes, int]:
        """Bytes from ``start`` on, at most ``length``, and the length of the whole file."""
        raise NotImplementedError

    def fingerprint(self, uri: str) -> str:
        raise NotImplementedError

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        raise NotImplementedError

    def size(self, uri: str) -> int:
        return self.fetch(uri, 0, 1)[1]

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        return self.fetch(uri, 0, length)

    def read(self, uri: str) -> bytes:
        with self.open(uri) as stream:
            return stream.read()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        return exactly(uri, self.fetch(uri, start, length)[0], length) if length else b""

    def open(self, uri: str) -> IO[bytes]:
        return io.BufferedReader(RangeStream(self, uri))

    def canonical(self, uri: str) -> str:
        return uri

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        raise _read_only(uri)

    def create(self, uri: str, length: int | None = None) -> Writer:
        raise _read_only(uri)

    def delete(self, uri: str) -> None:
        raise _read_only(uri)

    def delete_all(self, uris: Sequence[str]) -> None:
        for uri in uris:
            raise _read_only(uri)

    def delete_folder(self, folder: str) -> None:
        raise _read_only(folder)

    def fingerprint_of(self, written: Written) -> str:
        raise _read_only(written.uri)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        return (self.read(uri), self.fingerprint(uri)) if self.exists(uri) else None

    def exists(self, uri: str) -> bool:
        raise NotImplementedError

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        raise _read_only(folder)

    def folders(self, folder: str) -> builtins.list[str]:
        raise _read_only(folder)


class Compared(io.RawIOBase):
    """A stream that raises BadInputError at its end if it had another SHA-256."""

    def __init__(self, stream: RangeStream, uri: str, sha256: str) -> None:
        self._stream, self._uri, self._expected, self._digest = stream, uri, sha256, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        length = self._stream.readinto(buffer)
        self._digest.update(memoryview(buffer)[:length])
        if not length and self._digest.hexdigest() != self._expected:
            raise BadInputError(
                f"{self._uri} has SHA-256 {self._digest.hexdigest()}",
                "the file on the server was changed: check where it comes from, or start a new run",
            )
        return length

    def close(self) -> None:
        self._stream.close()
        super().close()


def _read_only(uri: str) -> ConfigurationError:
    return ConfigurationError(f"{uri} is read-only", "name documents there, and a folder or s3://… as the root")
