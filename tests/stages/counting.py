"""A local store that counts what is read."""

from collections import Counter

from retro_ops.storage.local import LocalStore


class CountingStore(LocalStore):
    """Counts the bytes that are read of each file."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self._uncounted = LocalStore()  # Its methods open the file, which would be counted again.

    def read(self, uri: str) -> bytes:
        data = self._uncounted.read(uri)
        self.bytes[uri] += len(data)
        return data

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        data, size = self._uncounted.head(uri, length)
        self.bytes[uri] += len(data)
        return data, size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        self.bytes[uri] += length
        return self._uncounted.read_range(uri, start, length)

    def open(self, uri: str):  # type: ignore[no-untyped-def]
        self.bytes[uri] += self.size(uri)
        return super().open(uri)
