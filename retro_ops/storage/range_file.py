"""A stored object as a file whose parts are read where they are needed."""

import io
import sys
from typing import Any

from retro_ops.storage import store


class EnoughError(Exception):
    """A reader of the first bytes of a file wants more of them than it may read."""


class RangeFile(io.RawIOBase):
    """A stored object as a seekable file: each read requests its range.

    ``most``: EnoughError instead of reading more bytes than that in all. A checksum in the URI is not compared, for
    which the whole file would have to be read.
    """

    def __init__(self, uri: str, most: int = sys.maxsize) -> None:
        self._uri, self._store, self._left = uri, store.at(uri), most
        self.size, self._position = self._store.size(uri), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self._position))
        if length > self._left:
            raise EnoughError
        buffer[:length] = self._store.read_range(self._uri, self._position, length)
        self._position += length
        self._left -= length
        return length
