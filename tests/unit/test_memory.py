"""How the memory of a stage is divided."""

from retro_ops.memory import MemoryLimit, index_limit, training_sample


def test_an_index_may_take_what_was_requested_or_what_the_machine_has_left() -> None:
    assert index_limit(3 * 2**30, 2**31) == MemoryLimit(3 * 2**30, "--search-memory")
    left = index_limit(None, 2**31)
    assert 0 < left.bytes < 2**50
    assert "less the memory budget" in left.why
    assert index_limit(None, 2**60).bytes > 0


def test_a_training_sample_may_take_the_budget_or_what_the_machine_has() -> None:
    assert training_sample(5 * 2**20) == MemoryLimit(5 * 2**20, "--memory-budget")
    left = training_sample(None)
    assert left.bytes == (index_limit(None, 0).bytes) // 2
    assert left.why.startswith("three eighths of ")
