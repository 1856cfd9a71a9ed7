"""Creates a virtual environment with pinned packages, and prints how far it is a few times a minute.

Locks with hashes are complete, so pip takes nothing else, and no file whose hash is not in the lock. torch comes after
them, from the lock's torch.txt, which has no hash.

python3 requirements/install.py .venv/stages requirements/stages.txt requirements/demo.txt
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from subprocess import PIPE, STDOUT

INTERVAL_S = 15.0


class Installation:
    """What the output of ``pip install`` says so far."""

    def __init__(self, pinned: int) -> None:
        self.packages = pinned
        """Number of packages; the CUDA build of torch brings some that are not pinned."""
        self.collected = 0
        self.current = ""
        self.is_unpacking = False
        self.last_lines: deque[str] = deque(maxlen=20)

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.last_lines.append(line)
            if found := re.match(r"Collecting (\S+)", line):
                self.collected += 1
                self.packages = max(self.packages, self.collected)
                self.current = found[1].replace("==", " ")
            elif found := re.match(r"\s+Downloading \S+ (\([\d.]+ [kMG]B\))", line):
                self.current += f" {found[1]}"
            elif line.startswith("Installing collected packages: "):
                self.packages = line.count(",") + 1
                self.is_unpacking = True
            elif line.startswith("WARNING: Retrying"):
                print(line, end="", flush=True)

    def progress(self, downloaded_mb: int, unpacked: int) -> str:
        if self.is_unpacking:
            return f"unpacked {min(unpacked, self.packages)} of {self.packages} packages"
        current = f", {self.current}" if self.current else ""
        return f"fetching package {self.collected} of {self.packages}{current}; {downloaded_mb:,} MB so far"


def install(environment: Path, requirements: list[str]) -> int:
    """The exit code of pip, whose last lines are printed if it fails."""
    if not (environment / "bin/pip").exists():
        venv.create(environment, with_pip=True)
    started = time.monotonic()
    command = [str(environment / "bin/pip"), "install", "--progress-bar", "off"]
    command += [word for file in requirements for word in ("-r", file)]
    lines = [line for file in requirements for line in Path(file).read_text().splitlines()]
    if any("--hash=" in line for line in lines):
        command += ["--require-hashes", "--no-deps"]
    state = Installation(sum("==" in line for line in lines))
    before = _unpacked(environment)
    # pip keeps what it fetches in a temporary folder until it has installed it.
    with tempfile.TemporaryDirectory() as fetched:
        variables = {**os.environ, "TMPDIR": fetched, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, env=variables) as pip:
            assert pip.stdout
            reader = threading.Thread(target=state.read, args=(pip.stdout,))
            reader.start()
            while _is_running(reader):
                progress = state.progress(_megabytes(Path(fetched)), _unpacked(environment) - before)
                print(f"  {environment}: {progress} ({time.monotonic() - started:.0f} s)", flush=True)
    if pip.returncode:
        print("".join(state.last_lines), flush=True)
    else:
        print(f"  {environment}: {state.packages} packages in {time.monotonic() - started:.0f} s", flush=True)
    return pip.returncode


def _is_running(reader: threading.Thread) -> bool:
    reader.join(INTERVAL_S)
    return reader.is_alive()


def _unpacked(environment: Path) -> int:
    return sum(1 for _ in environment.glob("lib/python*/site-packages/*.dist-info"))


def _megabytes(folder: Path) -> int:
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # pip has just moved it.
                continue
    return total // 1_000_000


def main(environment: Path, requirements: list[str]) -> int:
    """Install the locks, then torch if one of them was made from a file that asks for it."""
    code = install(environment, requirements)
    asks = [file for file in requirements if "-r torch.txt" in Path(file).with_suffix(".in").read_text()]
    return code or (install(environment, [str(Path(asks[0]).with_name("torch.txt"))]) if asks else 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
