"""A store in the memory of one process, for tests: ``memory://name/path``."""

import builtins
import hashlib
import io
import threading
import time
from collections.abc import Sequence
from typing import IO

from retro_ops.storage.base import ConflictError, Stored, Writer, Written, exactly, missing


class MemoryStore:
    """Objects in a dictionary. Every process has its own, which ends with it."""

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def exists(self, uri: str) -> bool:
        return uri in self._objects

    def size(self, uri: str) -> int:
        return len(self.read(uri))

    def read(self, uri: str) -> bytes:
        try:
            return self._objects[uri][0]
        except KeyError as error:
            raise missing(uri) from error

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        data = self.read(uri)
        return data[:length], len(data)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        return exactly(uri, self.read(uri)[start : start + length], length)

    def read_tagged(self, uri: str) -> tuple[bytes, str] | None:
        found = self._objects.get(uri)
        return None if found is None else (found[0], _tag(found[0]))

    def write_if(self, uri: str, data: bytes, tag: str | None) -> None:
        with self._lock:
            current = self.read_tagged(uri)
            if (current[1] if current else None) != tag:
                raise ConflictError(f"{uri} was changed by another process", "run the command again")
            self._objects[uri] = bytes(data), time.time()

    def create(self, uri: str, length: int | None = None) -> Writer:
        return _MemoryWriter(self, uri)

    def open(self, uri: str) -> IO[bytes]:
        return io.BytesIO(self.read(uri))

    def canonical(self, uri: str) -> str:
        return uri

    def delete(self, uri: str) -> None:
        with self._lock:
            self._objects.pop(uri, None)

    def delete_all(self, uris: Sequence[str]) -> None:
        for uri in uris:
            self.delete(uri)

    def delete_folder(self, folder: str) -> None:
        self.delete_all(self.list(folder))

    def objects(self, folder: str, *, follow_links: bool = False) -> builtins.list[Stored]:
        prefix = folder.rstrip("/") + "/"
        with self._lock:
            found = [(uri, *of) for uri, of in self._objects.items() if uri.startswith(prefix)]
        return [Stored(uri, len(data), modified) for uri, data, modified in sorted(found)]

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        return [stored.uri for stored in self.objects(folder)]

    def folders(self, folder: str) -> builtins.list[str]:
        prefix = folder.rstrip("/") + "/"
        below = (uri.removeprefix(prefix) for uri in self.list(folder))
        return sorted({name.partition("/")[0] for name in below if "/" in name})

    def fingerprint(self, uri: str) -> str:
        return f"sha256:{_tag(self.read(uri))}"

    def fingerprint_of(self, written: Written) -> str:
        return f"sha256:{written.sha256}"

    def put(self, uri: str, data: bytes) -> None:
        with self._lock:
            self._objects[uri] = data, time.time()


class _MemoryWriter:
    def __init__(self, store: MemoryStore, uri: str) -> None:
        self._store, self._uri, self._data = store, uri, bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self._data += data

    def set_head(self, data: bytes) -> None:
        self._data[: len(data)] = data

    def close(self) -> Written:
        data = bytes(self._data)
        self._store.put(self._uri, data)
        return Written(self._uri, len(data), _tag(data))

    def abort(self) -> None:
        self._data.clear()


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
