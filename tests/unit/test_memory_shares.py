"""Shares of the memory budget and of the memory limit of an index."""

import pytest

from retro_ops import memory


@pytest.mark.parametrize("amount", [3, 1000, 2**31 + 1])
def test_shares_that_are_in_memory_together_are_no_more_than_the_whole(amount: int) -> None:
    assert memory.candidate_pairs(amount) + memory.band_keys(amount) <= amount
    assert memory.candidate_pairs(amount) + memory.pair_signatures(amount) <= amount
    signing = memory.benchmark_texts(amount) + memory.benchmark_copies(amount)
    assert signing + memory.transposed_signatures(amount) <= amount
    # Lists are held twice: as they are read, and as faiss or the store takes them.
    assert 2 * memory.lists_at_once(amount) + memory.queries_at_once(amount) <= amount
