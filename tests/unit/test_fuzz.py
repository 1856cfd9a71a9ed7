"""A short run of the fuzzer over every parser; `benchmarks/fuzz.py` runs for as long as one likes."""

import random

import pytest

from benchmarks.fuzz import fuzz, guarded, mutated, targets

EXECUTIONS = 150


@pytest.mark.parametrize("name", targets())
def test_no_mutated_input_is_a_traceback(name: str) -> None:
    target = targets()[name]()
    for seed in target.seeds:
        target.parse(seed)  # A seed is a right input.
    with guarded():
        findings = fuzz(target, EXECUTIONS, seed=0)
    assert [error for error, _ in findings.found] == []
    assert findings.executions == EXECUTIONS


def test_a_parser_that_fails_is_found() -> None:
    from benchmarks.fuzz import Target

    def fragile(data: bytes) -> None:
        if b"NaN" in data:
            raise KeyError("x")

    with guarded():
        findings = fuzz(Target(fragile, (b"a right input",)), 2000, seed=0)
    assert findings.found
    assert all(b"NaN" in data for _, data in findings.found)
    assert mutated(b"abc", (b"abc",), random.Random(1)) == mutated(b"abc", (b"abc",), random.Random(1))
