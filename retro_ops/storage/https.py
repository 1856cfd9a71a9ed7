"""Files on web servers, read-only, each with its checksum: ``https://host/file.jsonl.zst#sha256=<64 hex digits>``."""

import builtins
import hashlib
import io
import re
from typing import IO, Any

from retro_ops.errors import BadInputError
from retro_ops.storage import http_ranges
from retro_ops.storage.base import missing
from retro_ops.storage.read_ahead import RangeStream
from retro_ops.storage.read_only import ReadOnlyStore

ADDRESS = re.compile(r"(https://[^/?#@\s]+/[^#\s]*)#sha256=([0-9a-f]{64})")


class HttpsStore(ReadOnlyStore):
    """Files whose checksum their URI holds. ``open`` compares it, so a file that is read to its end is that file."""

    def fetch(self, uri: str, start: int, length: int) -> tuple[bytes, int]:
        return http_ranges.fetch(uri, _parts(uri)[0], start, length)

    def exists(self, uri: str) -> bool:
        try:
            self.fetch(uri, 0, 1)
        except BadInputError as error:
            if str(error) == str(missing(uri)):
                return False
            raise
        return True

    def open(self, uri: str) -> IO[bytes]:
        return io.BufferedReader(_Compared(RangeStream(self, uri), uri, _parts(uri)[1]))

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return []  # There is no protocol for it.

    def fingerprint(self, uri: str) -> str:
        return f"sha256:{_parts(uri)[1]}"


class _Compared(io.RawIOBase):
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
                "the file on the server was changed: check where it comes from, and correct the checksum",
            )
        return length

    def close(self) -> None:
        self._stream.close()
        super().close()


def _parts(uri: str) -> tuple[str, str]:
    """Address and SHA-256."""
    if not (found := ADDRESS.fullmatch(uri)):
        raise BadInputError(
            f"{uri!r} is not an address with a checksum",
            "write https://host/file.jsonl.zst#sha256=…, with the SHA-256 of the file and without a password",
        )
    return found[1], found[2]
