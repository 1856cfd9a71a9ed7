"""Threads ahead of the caller and processes beside it: order, errors, ends."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retro_ops.compute.workers import AHEAD, ahead, in_order


def test_what_is_made_ahead_comes_in_order_and_no_further_than_allowed() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            made.append(number)
            yield number

    with ahead(items()) as found:
        for number in found:
            assert len(made) <= number + AHEAD + 2
    assert made == list(range(50))


def test_an_error_is_raised_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with ahead(items()) as found:
        assert next(found) == 1
        with pytest.raises(KeyError):
            next(found)


def test_a_caller_that_leaves_early_leaves_nothing_running() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    before = threading.active_count()
    with ahead(items()) as found:
        next(found)
    assert closed == [True]
    assert threading.active_count() == before


def with_process() -> Callable[[int], tuple[int, int]]:
    def work(number: int) -> tuple[int, int]:
        if number < 0:
            raise ValueError(f"no {number}")
        return number, os.getpid()

    return work


def test_processes_give_results_in_order() -> None:
    found = list(in_order(with_process, range(20), 2))
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {process for _, process in found}


def test_processes_stay_for_the_same_work_and_go_for_another() -> None:
    def processes(make: Any) -> set[int]:
        return {process for _, process in in_order(make, range(40), 2)}

    first = processes(with_process)
    assert processes(with_process) & first
    assert not processes(partial(with_process)) & first


@pytest.mark.parametrize(("items", "processes"), [([5], 2), ([5, 6], 1), ([], 2)])
def test_little_work_is_done_in_this_process(items: list[int], processes: int) -> None:
    assert list(in_order(with_process, items, processes)) == [(item, os.getpid()) for item in items]


def test_an_error_in_a_process_is_raised_here() -> None:
    found = in_order(with_process, [1, -1, 2], 2)
    assert next(found)[0] == 1
    with pytest.raises(ValueError, match="no -1"):
        list(found)


def test_a_process_that_died_since_costs_nothing() -> None:
    (process, *_) = {process for _, process in in_order(with_process, range(40), 2)}
    os.kill(process, signal.SIGKILL)
    while Path(f"/proc/{process}").exists():  # Until the pool has noticed.
        time.sleep(0.01)
    assert [number for number, _ in in_order(with_process, range(20), 2)] == list(range(20))
