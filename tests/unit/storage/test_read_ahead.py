"""Reads ahead of their use."""

import functools

import pytest

from retro_ops.errors import BadInputError
from retro_ops.storage import read_ahead


def test_reads_run_ahead_in_order_and_no_further_than_they_may() -> None:
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        if number == 30:
            raise BadInputError("gone")
        return number

    reads = read_ahead.ahead(functools.partial(read, number) for number in range(40))
    for number in range(20):
        assert next(reads) == number
        assert len(started) <= number + read_ahead.AHEAD
    with pytest.raises(BadInputError, match="gone"):
        list(reads)
    assert len(started) <= 31 + read_ahead.AHEAD
    closed = read_ahead.ahead(functools.partial(read, number) for number in range(10))
    next(closed)
    closed.close()
