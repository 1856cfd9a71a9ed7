"""The generated parts of the documentation say what the code says."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_table_is_found(tmp_path: Path) -> None:
    for folder in ("retro_ops", "plugins", "reader"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    (tmp_path / "docs").mkdir()
    for name in ("generate.py", "parameters.md", "architecture.md"):
        text = (REPOSITORY / "docs" / name).read_text()
        (tmp_path / "docs" / name).write_text(text.replace("`chunk_size`", "`size`"))
    command = [sys.executable, "docs/generate.py", "--check"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "stale: parameters.md; run `make docs`\n"), done.stderr
