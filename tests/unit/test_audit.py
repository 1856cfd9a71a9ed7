"""The conclusion of `make audit` from what pip-audit says."""

import runpy
from pathlib import Path
from typing import Any

import pytest

AUDIT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "requirements/audit.py"))
SOUND = {"name": "a", "version": "1", "vulns": []}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND], 0, "1 of 1 packages were compared, 0 are vulnerable"),
        ([SOUND, VULNERABLE], 1, "b 2: PYSEC-1, fixed in 3"),
        ([SOUND, VULNERABLE, SKIPPED], 1, "NOT COMPARED: 1 packages (c)"),
        ([SOUND, SKIPPED], 3, "1 of 2 packages were compared"),
        ([SKIPPED], 3, "could not be audited: c (1)"),
        ([], 3, "NOT COMPARED"),
        ([VULNERABLE, {**VULNERABLE, "version": "3", "vulns": []}], 1, "b 2: PYSEC-1, fixed in 3"),
    ],
    ids=["sound", "vulnerable", "both", "in part", "no database", "nothing", "another version in another lock"],
)
def test_what_was_not_compared_is_never_called_sound(packages: list[dict[str, Any]], code: int, said: str) -> None:
    """pip-audit itself ends with 0 and "No known vulnerabilities found" where it skipped every package."""
    found, lines = AUDIT["conclusion"](packages)
    assert found == code
    assert said in "\n".join(lines)


def test_an_audit_without_pip_audit_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("a==1\n")
    code, lines = AUDIT["conclusion"](AUDIT["answer"](tmp_path / "lock.txt"))
    assert code == 3
    assert "No module named pip_audit" in "\n".join(lines)
