"""Files on web servers, read-only, each with its checksum: ``https://host/file.jsonl.zst#sha256=<64 hex digits>``."""

import builtins
import io
import re
from typing import IO

from retro_ops.errors import BadInputError
from retro_ops.storage import http_ranges
from retro_ops.storage.base import missing
from retro_ops.storage.read_ahead import RangeStream
from retro_ops.storage.read_only import Compared, ReadOnlyStore

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
        return io.BufferedReader(Compared(RangeStream(self, uri), uri, _parts(uri)[1]))

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return []  # There is no protocol for it.

    def fingerprint(self, uri: str) -> str:
        return f"sha256:{_parts(uri)[1]}"


def _parts(uri: str) -> tuple[str, str]:
    """Address and SHA-256."""
    if not (found := ADDRESS.fullmatch(uri)):
        raise BadInputError(
            f"{uri!r} is not an address with a checksum",
            "write https://host/file.jsonl.zst#sha256=…, with the SHA-256 of the file and without a password",
        )
    return found[1], found[2]
