"""Reads ahead in threads, and runs many requests in parallel."""

import functools
import io
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from retro_ops import memory
from retro_ops.storage.base import Store

READ_AHEAD_BYTES = 8 * 2**20
"""Bytes of one range request."""

LOOKUPS = 32
"""Small requests in parallel, since each mostly waits for the store."""

READERS = 8
"""Files read in full in parallel."""

T = TypeVar("T")

Item = TypeVar("Item")


Read: TypeAlias = tuple[int, Callable[[], T]]
"""The bytes that a read will hold in memory, and the read."""


class _InFlight:
    """Bytes that all readers of this process have in flight."""

    def __init__(self) -> None:
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def has_room(self, count: int) -> bool:
        return self._bytes + count <= memory.READERS_BYTES


_in_flight = _InFlight()


def ahead(reads: Iterable[Read[T]]) -> Generator[T, None, None]:
    """Yield the results of ``reads`` in order, while further ones run or wait.

    Up to LOOKUPS reads and ``memory.READER_BYTES`` are in flight, and ``memory.READERS_BYTES`` in all readers of the
    process, but always one read.
    """
    running: deque[tuple[int, Future[T]]] = deque()
    held = 0
    ready: list[T] = []  # The next result. It is yielded once the reads that follow it have started.
    upcoming = iter(reads)
    following = next(upcoming, None)
    with ThreadPoolExecutor(LOOKUPS) as pool:
        try:
            while following or running:
                while following and (not running or _has_room(following[0], held, len(running))):
                    size, read = following
                    running.append((size, pool.submit(read)))
                    _in_flight.add(size)
                    held += size
                    following = next(upcoming, None)
                yield from ready
                size, result = running.popleft()
                ready = [result.result()]
                _in_flight.add(-size)
                held -= size
            yield from ready
        finally:
            _in_flight.add(-held)


def _has_room(size: int, held: int, running: int) -> bool:
    return running < LOOKUPS and held + size <= memory.READER_BYTES and _in_flight.has_room(size)


def side_by_side(work: Callable[[Item], T], items: Iterable[Item], at_once: int = LOOKUPS) -> list[T]:
    """The results of ``work`` for ``items``, in order, computed by ``at_once`` threads."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))


class RangeStream(io.RawIOBase):
    """A stream over an object, read in ranges ahead of use."""

    def __init__(self, store: Store, uri: str) -> None:
        first, size = store.head(uri, READ_AHEAD_BYTES)
        ranges = ((start, min(READ_AHEAD_BYTES, size - start)) for start in range(len(first), size, READ_AHEAD_BYTES))
        self._chunks = ahead(
            (length, functools.partial(store.read_range, uri, start, length)) for start, length in ranges
        )
        self._rest = memoryview(first)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        length = min(len(buffer), len(self._rest))
        buffer[:length] = self._rest[:length]
        self._rest = self._rest[length:]
        return length

    def close(self) -> None:
        self._chunks.close()
        super().close()
