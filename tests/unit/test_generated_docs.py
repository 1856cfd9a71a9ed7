"""docs/parameters.md says what the table of parameters says."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_generated_tables_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_table_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("generate.py", "parameters.md"):
        (tmp_path / "docs" / name).write_text(
            (REPOSITORY / "docs" / name).read_text().replace("`chunk_size`", "`size`")
        )
    command = [sys.executable, "docs/generate.py", "--check"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "stale" in done.stdout) == (1, True), done.stdout + done.stderr
