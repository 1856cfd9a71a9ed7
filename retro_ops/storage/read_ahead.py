"""Reads that run ahead of their use, and many small requests at once."""

import functools
import io
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from retro_ops.storage.base import Store

READ_AHEAD_BYTES = 8 * 2**20
"""Length of one range."""

LOOKUPS = 32
"""Small requests in flight when there are many: each spends most of its time waiting for the store."""

READERS = 8
"""Files read at once when each is read in full: each has AHEAD blocks in memory."""

AHEAD = 4
"""Reads in flight: enough to hide the latency of a store behind work, few enough to fit into memory."""

T = TypeVar("T")

Item = TypeVar("Item")


def ahead(reads: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """Results of ``reads`` in order; up to AHEAD of them run, or wait to be taken, while the caller works."""
    with ThreadPoolExecutor(AHEAD) as pool:
        running: deque[Future[T]] = deque()
        for read in reads:
            running.append(pool.submit(read))
            if len(running) >= AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def side_by_side(work: Callable[[Item], T], items: Iterable[Item], at_once: int = LOOKUPS) -> list[T]:
    """Results of ``work`` for each of ``items``, in order; ``at_once`` threads."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))


class RangeStream(io.RawIOBase):
    """An object from start to end, range by range, with reads ahead."""

    def __init__(self, store: Store, uri: str) -> None:
        first, size = store.head(uri, READ_AHEAD_BYTES)
        ranges = ((start, min(READ_AHEAD_BYTES, size - start)) for start in range(len(first), size, READ_AHEAD_BYTES))
        self._chunks = ahead(functools.partial(store.read_range, uri, *of) for of in ranges)
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
