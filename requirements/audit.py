"""Compares every lock with a database of known vulnerabilities, by pip-audit.

    .venv/audit/bin/python requirements/audit.py

Exit code 0: all packages were found in the database, and none is vulnerable. 1: some are vulnerable. 3: some could not
be compared, which pip-audit itself counts as a success: a mirror of the package index, for example, has no database.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

VULNERABLE, NOT_COMPARED = 1, 3


def answer(lock: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each package of ``lock``; one entry that was skipped, if it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "-r", str(lock), "-f", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [{"name": lock.name, "skip_reason": reason}]


def conclusion(packages: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Exit code, and the lines to print."""
    # The locks differ in versions of a package, so a name alone would hide one behind another.
    audited = {(package["name"], package.get("version")): package for package in packages}
    vulnerable = [package for package in audited.values() if package.get("vulns")]
    skipped = [package for package in audited.values() if "vulns" not in package]
    lines = [
        f"{of['name']} {of['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for of in vulnerable
        for found in of["vulns"]
    ]
    compared = len(audited) - len(skipped)
    lines.append(f"{compared} of {len(audited)} packages were compared, {len(vulnerable)} are vulnerable")
    if skipped or not audited:
        names = ", ".join(package["name"] for package in skipped[:5])
        lines.append(f"NOT COMPARED: {len(skipped)} packages ({names}{', …' if len(skipped) > 5 else ''})")
        lines += [f"  {package['skip_reason']}" for package in skipped[:1]]
        lines.append("  What to do: run this where the package index itself can be reached, not a mirror of it")
    code = VULNERABLE if vulnerable else NOT_COMPARED if skipped or not audited else 0
    return code, lines


def main() -> int:
    code, lines = conclusion(package for lock in sorted(FOLDER.glob("*.txt")) for package in answer(lock))
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
