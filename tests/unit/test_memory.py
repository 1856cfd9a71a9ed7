"""Shares of the memory budget and of the memory limit of an index."""

import pytest

from retro_ops import memory
from retro_ops.memory import MemoryLimit, index_limit


def test_an_index_may_take_what_was_requested_or_what_the_machine_has_left() -> None:
    assert index_limit(3 * 2**30, 2**31) == MemoryLimit(3 * 2**30, "--search-memory")
    left = index_limit(None, 2**31)
    assert 0 < left.bytes < 2**50
    assert "less the memory budget" in left.why
    assert index_limit(None, 2**60).bytes > 0


@pytest.mark.parametrize("amount", [3, 1000, 2**31 + 1])
def test_what_is_in_memory_together_is_no_more_than_the_whole(amount: int) -> None:
    assert memory.candidate_pairs(amount) + memory.band_keys(amount) <= amount
    assert memory.candidate_pairs(amount) + memory.pair_signatures(amount) <= amount
    # Lists are held twice: as they are read, and as faiss or the store takes them.
    assert 2 * memory.lists_at_once(amount) + memory.queries_at_once(amount) <= amount
