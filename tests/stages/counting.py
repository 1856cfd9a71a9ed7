"""A local store that counts what is read."""

from collections import Counter

from retro_ops.storage.local import LocalStore


class CountingStore(LocalStore):
    """Counts the bytes that are read of each file."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()

    def read(self, uri: str) -> bytes:
        data = super().read(uri)
        self.bytes[uri] += len(data)
        return data

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        data, size = super().head(uri, length)
        self.bytes[uri] += len(data)
        return data, size

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        self.bytes[uri] += length
        return super().read_range(uri, start, length)

    def open(self, uri: str):  # type: ignore[no-untyped-def]
        self.bytes[uri] += self.size(uri)
        return super().open(uri)
