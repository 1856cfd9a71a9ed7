"""Runs work beside a stage: ahead of it in threads, or in processes."""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 8
"""Of ``in_threads``: enough to copy blocks to a device as fast as they are read."""

AHEAD = 2
"""Items that wait for each process or reader: enough to keep it busy, few enough to hold."""

_END = object()
_function: Callable[[Any], Any]


@contextlib.contextmanager
def ahead(items: Iterable[T], waiting: int = AHEAD) -> Iterator[Iterator[T]]:
    """``items``, made in a thread while the caller works on earlier ones; at most ``waiting`` of them wait.

    An exception of ``items`` is raised in place of the item. Leaving the context ends the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(waiting)
    left = threading.Event()

    def put(entry: tuple[Any, BaseException | None]) -> bool:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # Raised in the thread of the caller.
            put((_END, error))
        finally:
            if isinstance(items, Generator):
                items.close()  # Ends what it holds, such as processes.

    def taken() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        left.set()
        thread.join()


def in_order(make: Callable[[], Callable[[T], R]], items: Iterable[T], processes: int) -> Iterator[R]:
    """Applies the function that ``make`` returns to each item, and yields the results in the order of ``items``.

    It runs in ``processes`` worker processes, each of which calls ``make`` once; in this process if there is only one
    item, or one process. The workers are kept for the next call with the same ``make``, as the shards of a group make;
    only one caller may use them at a time. ``items`` is read no further ahead than keeps the workers busy, so memory is
    bounded. An exception is raised in place of the result.
    """
    source = iter(items)
    first = list(itertools.islice(source, 2))
    if len(first) < 2 or processes < 2:
        function = make()
        yield from map(function, itertools.chain(first, source))
        return
    yield from _windowed(_pool(make, processes), _call, itertools.chain(first, source), processes * AHEAD)


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of ``work`` for ``items``, in order. Up to THREADS of them are computed or wait for the caller."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from _windowed(pool, work, items, THREADS)


def _windowed(pool: Executor, work: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
    """The results of ``work`` for ``items``, in order. Up to ``most`` items are submitted ahead of the caller."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


_kept: tuple[bytes, ProcessPoolExecutor] | None = None


def _pool(make: Callable[[], Callable[[Any], Any]], processes: int) -> ProcessPoolExecutor:
    """Worker processes that have called ``make``: the kept ones, if it was the same and none of them has died."""
    global _kept
    wanted = pickle.dumps((make, processes))
    if _kept is None or _kept[0] != wanted or _is_broken(_kept[1]):
        _end_pool()
        # Spawned: a fork would copy locks that threads of this process hold.
        context = multiprocessing.get_context("spawn")
        _kept = wanted, ProcessPoolExecutor(processes, context, _begin, (make,))
    return _kept[1]


def _is_broken(pool: ProcessPoolExecutor) -> bool:
    try:
        pool.submit(os.getpid)
    except BrokenProcessPool:
        return True
    return False


def _end_pool() -> None:
    global _kept
    if _kept is not None:
        _kept[1].shutdown()
    _kept = None


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _function
    # The processes already run in parallel.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make()


def _end_with_parent() -> None:
    """Ends this process when its parent dies: a parent that was killed cannot do that itself."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)
