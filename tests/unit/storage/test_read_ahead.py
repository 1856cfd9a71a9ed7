"""Reads ahead of their use: in order, and within the bytes that may be in flight."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops import memory
from retro_ops.errors import BadInputError
from retro_ops.storage import read_ahead

MIB = 2**20


class Reads:
    """Reads of ``sizes`` bytes, and how far they have come."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.submitted = 0

    def __iter__(self) -> Iterator[read_ahead.Read[int]]:
        for number, size in enumerate(self.sizes):
            self.submitted = number  # The one before was submitted when the next one is wanted.
            yield size, functools.partial(int, number)
        self.submitted = len(self.sizes)

    def in_flight(self, taken: int) -> list[int]:
        return self.sizes[taken : self.submitted]


@given(st.lists(st.sampled_from([0, 1, MIB, 8 * MIB, 33 * MIB, 64 * MIB, 300 * MIB]), max_size=60))
def test_reads_come_in_order_and_no_more_bytes_than_a_reader_may_have(sizes: list[int]) -> None:
    reads = Reads(sizes)
    for taken, found in enumerate(read_ahead.ahead(reads), 1):
        assert found == taken - 1
        in_flight = reads.in_flight(taken)
        assert len(in_flight) <= read_ahead.LOOKUPS
        assert len(in_flight) <= 1 or sum(in_flight) <= memory.READER_BYTES
        assert in_flight or taken == len(sizes), "the next read runs while the caller works"
    assert read_ahead._in_flight.has_room(memory.READERS_BYTES), "nothing is left in flight"


@pytest.mark.parametrize(("size", "in_flight"), [(1000, 32), (8 * MIB, 8), (32 * MIB, 2), (65 * MIB, 1)])
def test_small_reads_are_more_requests_at_a_time(size: int, in_flight: int) -> None:
    reads = Reads([size] * 100)
    with closing(read_ahead.ahead(reads)) as found:
        next(found)
        assert len(reads.in_flight(1)) == in_flight


def test_all_readers_together_have_a_limit_and_each_goes_on() -> None:
    readers = [Reads([8 * MIB] * 40) for _ in range(12)]
    found = [read_ahead.ahead(reads) for reads in readers]
    for taken, reader in itertools.product(range(1, 41), found):
        assert next(reader) == taken - 1
        held = [sum(reads.in_flight(taken)) for reads in readers if reads.submitted]
        assert sum(held) <= memory.READERS_BYTES + len(readers) * 8 * MIB
    for reader in found:
        assert next(reader, None) is None
    assert read_ahead._in_flight.has_room(memory.READERS_BYTES)


def fail() -> int:
    raise BadInputError("gone")


def test_a_failed_or_abandoned_reader_leaves_nothing_in_flight() -> None:
    reads: list[read_ahead.Read[int]] = [(MIB, functools.partial(int, number)) for number in range(40)]
    with pytest.raises(BadInputError, match="gone"):
        list(read_ahead.ahead([*reads, (MIB, fail), *reads]))
    with closing(read_ahead.ahead(reads)) as abandoned:
        assert next(abandoned) == 0
    assert read_ahead._in_flight.has_room(memory.READERS_BYTES)
