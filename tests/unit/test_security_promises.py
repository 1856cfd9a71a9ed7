"""Every promise of SECURITY.md has a test that exists, and the local stack keeps to this machine."""

import ast
import re
import stat
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| (?P<promise>.+) \| (?P<against>.+) \| `(?P<file>tests/[^:`]+)::(?P<test>\w+)` \|")


def rows() -> list[re.Match[str]]:
    """The rows of the table, of which each must have a promise, whom it is against, and a test."""
    text = (REPOSITORY / "SECURITY.md").read_text()
    lines = text[text.index("| promise |") :].partition("\n\n")[0].splitlines()[2:]
    found = [(line, ROW.fullmatch(line)) for line in lines]
    assert not [line for line, match in found if match is None]
    return [match for _, match in found if match]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["test"])
def test_every_promise_has_a_test(row: re.Match[str]) -> None:
    tree = ast.parse((REPOSITORY / row["file"]).read_text())
    assert row["test"] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_local_stack_listens_on_loopback_and_keeps_its_keys_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "demo"))
    from stack import AIRFLOW_PROGRAMS, SUPERVISOR, Stack

    stack, other = Stack(tmp_path / "a"), Stack(tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "a/env").stat().st_mode) == 0o600
    assert stack.settings["AWS_SECRET_ACCESS_KEY"] != other.settings["AWS_SECRET_ACCESS_KEY"]
    assert stack.environment()["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert "-ip.bind=127.0.0.1" in SUPERVISOR
    for name in ("scheduler", "triggerer"):  # They would serve logs on all interfaces.
        assert "--skip-serve-logs" in AIRFLOW_PROGRAMS[name]
    assert not re.search(r"0\.0\.0\.0|secret", SUPERVISOR, re.IGNORECASE), "no argument of a process holds a key"
