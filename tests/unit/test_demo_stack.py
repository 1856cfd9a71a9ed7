"""The command line of the demo's stack."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [("down", "--run-dir", "{}"), ("--run-dir", "{}", "down")])
def test_the_stack_is_that_of_the_run_directory(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, str(REPOSITORY / "demo/stack.py"), *(word.format(tmp_path) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "The stack is not running.\n"
    assert (tmp_path / "env").exists()
