"""What the machine lacks is one clear error that is tried again, at the command line and in the store."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from retro_ops.errors import EXIT_TRANSIENT, TransientError, exhausted
from retro_ops.storage import store

FULL = "/dev/full"
"""A device on which every write finds no space."""

COMMAND = "import sys; from retro_ops.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as found, open(FULL, "wb", buffering=0) as full:
        full.write(b"x")
    error = exhausted(found.value, "a.npy")
    assert isinstance(error, TransientError)
    assert "no space left to write a.npy" in str(error)


def test_too_many_open_files_are_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store.write(f"{tmp_path}/a", b"x")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TransientError, match="too many open files, at /"):
            store.read(f"{tmp_path}/a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_command_without_memory_says_so(tmp_path: Path) -> None:
    """Of 512 MiB of addresses, in which the interpreter fits and a large file does not."""
    large = tmp_path / "current.json"
    (tmp_path / "d").mkdir()
    with large.open("wb") as file:
        file.truncate(2**30)
    large.rename(tmp_path / "d/current.json")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))

    words = ["list", "--root", str(tmp_path), "--dataset", "d"]
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == EXIT_TRANSIENT
    assert "no memory left" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_errors_are_not_taken_for_it() -> None:
    assert exhausted(PermissionError(13, "Permission denied")) is None
    assert exhausted(ValueError("x")) is None
