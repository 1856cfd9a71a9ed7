"""How the memory of a stage is divided."""

import pytest

from retro_ops import memory
from retro_ops.execution import budgets
from retro_ops.memory import MemoryLimit, index_limit, training_sample
from retro_ops.plan.parameters import Parameters


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


def test_a_budget_at_its_default_grows_with_the_container_and_a_chosen_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = Parameters(memory_budget="64MiB")
    for container, expected in ((None, 2 * 2**30), (4 * 2**30, 2 * 2**30), (64 * 2**30, 16 * 2**30)):
        monkeypatch.setattr(memory, "_cgroup_memory", lambda limit=container: limit)
        assert budgets.budget(Parameters()) == expected
        assert (budgets.budget(chosen), budgets.chosen(chosen)) == (64 * 2**20, 64 * 2**20)
    assert budgets.chosen(Parameters()) is None
