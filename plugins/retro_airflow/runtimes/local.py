"""Runs stages as processes of this machine, which outlive the worker that started them.

A job is a folder: ``handle.json``, ``log`` (stdout and stderr) and, once the stage has ended, ``exit-code``. All that
another process needs to watch the job is there or in /proc.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from retro_airflow.runtimes import Handle, Job, Position, Status
from retro_ops.plan.name_lists import split_names

GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL. Airflow gives on_kill 5 s before it kills the task process itself."""

KILL_S = 0.5

READ_BYTES = 2**20

# Waits for a line on stdin before it starts the stage, so that a worker that dies before the handle
# is on disk leaves no stage behind. The trap keeps the shell alive through a SIGTERM to the group,
# so that the stage's exit code is still written; the stage itself does not inherit it.
WRAPPER = """
trap : TERM INT HUP
read -r go || exit 0
folder=$1; shift
"$@" </dev/null
code=$?
echo $code >"$folder/exit-code.part" && mv "$folder/exit-code.part" "$folder/exit-code"
"""

_OF_STAGES = re.compile(
    "|".join(
        (
            # The store, the hub and this package.
            r"(AWS|GOOGLE|AZURE|HF|RETRO|TRANSFORMERS|TOKENIZERS|SENTENCE_TRANSFORMERS)_\w+",
            # Libraries that compute.
            r"(OMP|KMP|GOMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|MPL)_?\w*",
            # The machine: programs, languages, places, certificates, proxies.
            r"PATH|LD_LIBRARY_PATH|LD_PRELOAD|HOME|USER|LOGNAME|SHELL|TERM|TZ|LANG|LANGUAGE|LC_\w+|TMPDIR|TEMP|TMP",
            r"XDG_\w+|CC|CXX|HOSTNAME|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(HTTPS?|NO|ALL)_PROXY",
            r"PYTHON(UNBUFFERED|UTF8|IOENCODING|WARNINGS|FAULTHANDLER|HASHSEED|DONTWRITEBYTECODE|MALLOC)|MALLOC_\w+",
        )
    ),
    re.IGNORECASE,
)
"""Allow-list of the variables that a stage gets. A deny-list could not name every secret."""

MORE_VARIABLES = "RETRO_STAGE_VARIABLES"
"""Names of further variables for stages, with commas between them."""

_CHILDREN: list[subprocess.Popen[bytes]] = []
"""Children of this process, whichever runtime object started them."""


class LocalRuntime:
    """Keeps a folder for each job name in ``jobs_dir``, and in it one for each submission.

    ``command``: how to call ``retro-ops``. The resources of a job are not enforced.
    """

    def __init__(self, jobs_dir: Path, command: Sequence[str]) -> None:
        self._jobs_dir = jobs_dir
        self._command = command

    def command(self, arguments: Sequence[str]) -> list[str]:
        return [*self._command, *arguments]

    def submit(self, job: Job) -> Handle:
        """Start the job, or return the running job of this name on this machine."""
        with self._lock():
            parent = self._jobs_dir / job.name
            attempts = sorted((int(path.name) for path in parent.glob("[0-9]*")), reverse=True)
            if attempts and (running := self._running(parent / str(attempts[0]))):
                return running
            folder = parent / str(attempts[0] + 1 if attempts else 1)
            folder.mkdir(parents=True)
            return self._start(job, folder)

    def status(self, handle: Handle) -> Status:
        _reap()
        folder = Path(handle["folder"])
        if handle["host"] != socket.gethostname():
            return Status("lost", reason=f"it ran on {handle['host']}, which cannot be watched from here")
        code = _exit_code(folder)
        if code is None and (_start_time(handle["pid"]) == handle["start_time"] or _members(handle)):
            return Status("running")
        # Read again: a job that ended after the first look has written its exit code before the second.
        code = _exit_code(folder) if code is None else code
        if code is not None:
            return Status("failed" if code else "succeeded", exit_code=code)
        return Status("lost", reason=f"process {handle['pid']} is gone without an exit code (killed, or a reboot)")

    def logs(self, handle: Handle, position: Position) -> tuple[list[str], Position]:
        offset = position or 0
        # In this order: a line without its end is complete only if no writer is left.
        ended = self.status(handle).state != "running"
        try:
            with (Path(handle["folder"]) / "log").open("rb") as file:
                file.seek(offset)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            return [], offset
        if not ended or len(data) == READ_BYTES:  # More may follow, perhaps on the same line.
            cut = data.rfind(b"\n") + 1
            data = data[:cut] if cut or len(data) < READ_BYTES else data
        lines = data.decode(errors="replace").removesuffix("\n").split("\n") if data else []
        return lines, offset + len(data)

    def cancel(self, handle: Handle) -> None:
        _signal(handle, signal.SIGTERM)
        if not self._gone_within(handle, GRACE_S):
            _signal(handle, signal.SIGKILL)
            if not self._gone_within(handle, KILL_S):
                _signal(handle, signal.SIGKILL)  # Processes that were forked during the first round.

    def forget(self, handle: Handle) -> None:
        """Delete the job if it succeeded; otherwise keep its log."""
        if self.status(handle).state != "succeeded":
            return
        folder = Path(handle["folder"])
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # Fails while it holds the logs of failed submissions.

    def jobs(self) -> list[Handle]:
        """All running jobs on this machine."""
        handles = (self._running(path.parent) for path in self._jobs_dir.glob("*/*/handle.json"))
        return [handle for handle in handles if handle]

    def _start(self, job: Job, folder: Path) -> Handle:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", WRAPPER, "sh", str(folder), *self.command(job.arguments)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=of_worker(job.environment),
                start_new_session=True,
            )
        _CHILDREN.append(process)
        handle: Handle = {
            "runtime": "local",
            "name": job.name,
            "task": asdict(job.task),
            "host": socket.gethostname(),
            "pid": process.pid,
            "start_time": _start_time(process.pid),
            "folder": str(folder),
        }
        _write(folder / "handle.json", json.dumps(handle))
        assert process.stdin is not None
        with process.stdin as go:
            go.write(b"go\n")
        return handle

    def _running(self, folder: Path) -> Handle | None:
        try:
            handle: Handle = json.loads((folder / "handle.json").read_text())
        except FileNotFoundError:
            return None
        return handle if self.status(handle).state == "running" else None

    def _gone_within(self, handle: Handle, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while _members(handle):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
            _reap()
        return True

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One submission at a time on this machine."""
        self._jobs_dir.mkdir(parents=True, exist_ok=True)
        with (self._jobs_dir / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def of_worker(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environ`` that a stage may need, and those that the deployment names besides."""
    more = {name.strip() for name in split_names(environ.get(MORE_VARIABLES, ""))}
    return {name: value for name, value in environ.items() if name in more or _OF_STAGES.fullmatch(name)}


def _reap() -> None:
    """Collect children that ended; they would stay zombies as long as this process lives."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


def _exit_code(folder: Path) -> int | None:
    """None while the job in ``folder`` has not ended, and for a job that was killed with all its processes."""
    try:
        return int((folder / "exit-code").read_text())
    except FileNotFoundError:
        return None


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if there is no such process or it is a zombie."""
    try:
        # The name in parentheses may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields


def _start_time(pid: int) -> int | None:
    """Start time in clock ticks since boot. Pids are reused; a pid and its start time identify a process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _members(handle: Handle) -> list[int]:
    """Living processes of the job's session: the stage may outlive the shell, and its children the stage."""
    leader_start = _start_time(handle["pid"])
    if leader_start is not None and leader_start != handle["start_time"]:
        return []  # The pid was reused, so the session has ended: the id of a living session is not reused.
    running = ((int(entry), _stat(int(entry))) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid, fields in running if fields and int(fields[3]) == handle["pid"]]


def _signal(handle: Handle, number: signal.Signals) -> None:
    for pid in _members(handle):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
