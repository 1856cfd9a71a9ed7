"""The local runtime, with real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from retro_airflow import runtimes, settings
from retro_airflow.runtimes import Handle, Job, Status
from retro_airflow.runtimes import local as local_runtime
from retro_airflow.runtimes.local import LocalRuntime

from retro_ops.errors import ConfigurationError

ENVIRONMENT = {"PATH": os.environ["PATH"]}
PATHS = [str(Path(__file__).resolve().parents[2] / folder) for folder in ("plugins", "")]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[LocalRuntime]:
    yield LocalRuntime(tmp_path / "jobs", ())
    for handle in handles(tmp_path):
        for pid in local_runtime._members(handle):
            os.kill(pid, signal.SIGKILL)


def handles(tmp_path: Path) -> list[Handle]:
    return [json.loads(path.read_text()) for path in tmp_path.glob("jobs/*/*/handle.json")]


def sh(runtime: LocalRuntime, script: str, name: str = "job") -> Handle:
    return runtime.submit(Job(name, ["/bin/sh", "-c", script], ENVIRONMENT))


def wait_for(condition: Callable[[], object], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def end(runtime: LocalRuntime, handle: Handle) -> Status:
    wait_for(lambda: runtime.status(handle).state != "running")
    return runtime.status(handle)


def alive(pid: int) -> bool:
    return local_runtime._start_time(pid) is not None


@pytest.mark.parametrize(("script", "state", "code"), [("exit 0", "succeeded", 0), ("exit 65", "failed", 65)])
def test_exit_code(runtime: LocalRuntime, script: str, state: str, code: int) -> None:
    status = end(runtime, sh(runtime, script))
    assert (status.state, status.exit_code) == (state, code)


def test_killed_stage_is_reported_by_its_signal(runtime: LocalRuntime) -> None:
    assert end(runtime, sh(runtime, "kill -9 $$")).exit_code == 137


def test_a_command_that_does_not_exist_is_a_failure(runtime: LocalRuntime) -> None:
    handle = runtime.submit(Job("job", ["/no/such/command"], ENVIRONMENT))
    assert end(runtime, handle).exit_code == 127
    assert "/no/such/command" in runtime.logs(handle, 0)[0][0]


def test_arguments_and_environment_arrive_unchanged(runtime: LocalRuntime) -> None:
    argument = "a b 'c' \"d\" $HOME *"
    code = "import os, sys; print(sys.argv[1]); print(sorted(os.environ)); print(repr(sys.stdin.read()))"
    handle = runtime.submit(Job("job", [sys.executable, "-I", "-c", code, argument], {"RETRO_ONLY": "this"}))
    end(runtime, handle)
    lines, _ = runtime.logs(handle, 0)
    assert lines[0] == argument
    assert "RETRO_ONLY" in lines[1]
    assert "HOME" not in lines[1]
    assert lines[2] == "''"


def test_lines_arrive_while_the_stage_runs(runtime: LocalRuntime, tmp_path: Path) -> None:
    go = tmp_path / "go"
    handle = sh(runtime, f"echo one; printf tw; while [ ! -e {go} ]; do sleep 0.02; done; echo o; printf end")
    wait_for(lambda: runtime.logs(handle, 0)[0])
    lines, offset = runtime.logs(handle, 0)
    assert lines == ["one"]  # Half a line waits for its other half.
    assert runtime.status(handle).state == "running"
    go.touch()
    end(runtime, handle)
    lines, offset = runtime.logs(handle, offset)
    assert lines == ["two", "end"]  # The last line counts even without its end.
    assert runtime.logs(handle, offset) == ([], offset)


def test_long_logs_come_in_pieces_and_lose_nothing(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_runtime, "READ_BYTES", 100)
    code = "for i in range(100): print(i, 'x' * (i * 3))"
    handle = runtime.submit(Job("job", [sys.executable, "-c", code], ENVIRONMENT))
    end(runtime, handle)
    lines, offset = runtime.logs(handle, 0)
    everything = lines
    while lines:
        lines, offset = runtime.logs(handle, offset)
        everything = everything + lines
    assert "".join(everything) == "".join(f"{i} {'x' * (i * 3)}" for i in range(100))


def test_submit_finds_the_job_that_runs(runtime: LocalRuntime, tmp_path: Path) -> None:
    first = sh(runtime, "echo ready; sleep 60")
    wait_for(lambda: runtime.logs(first, 0)[0])
    second = sh(LocalRuntime(tmp_path / "jobs", ()), "echo ready; sleep 60")
    assert second == first
    runtime.cancel(first)
    assert end(runtime, first).state == "failed"


def test_submit_starts_again_after_an_end_and_keeps_the_log_of_the_failure(runtime: LocalRuntime) -> None:
    first = sh(runtime, "echo broken; exit 1")
    end(runtime, first)
    second = sh(runtime, "true")
    assert second["folder"] != first["folder"]
    end(runtime, second)
    runtime.forget(second)
    assert not Path(second["folder"]).exists()
    assert runtime.logs(first, 0)[0] == ["broken"]


def test_nothing_is_left_of_a_success(runtime: LocalRuntime, tmp_path: Path) -> None:
    handle = sh(runtime, "true")
    end(runtime, handle)
    runtime.forget(handle)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"]


def test_many_at_once_start_one_job(tmp_path: Path) -> None:
    script = "echo started >> log; sleep 60"
    runtime_of = [LocalRuntime(tmp_path / "jobs", ()) for _ in range(8)]
    found: list[Handle] = []
    argv = ["/bin/sh", "-c", f"cd {tmp_path}; {script}"]
    threads = [
        threading.Thread(target=lambda r=r: found.append(r.submit(Job("job", argv, ENVIRONMENT)))) for r in runtime_of
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle["pid"] for handle in found}) == 1
    wait_for((tmp_path / "log").exists)
    assert (tmp_path / "log").read_text() == "started\n"
    for runtime in runtime_of:
        runtime.cancel(found[0])
    wait_for(lambda: all(r.status(found[0]).state != "running" for r in runtime_of))


def test_another_process_takes_over_after_the_first_was_killed(runtime: LocalRuntime, tmp_path: Path) -> None:
    program = f"""
        import json, sys, time
        sys.path[:0] = {PATHS!r}
        from pathlib import Path
        from retro_airflow.runtimes import Job
        from retro_airflow.runtimes.local import LocalRuntime
        argv = ["/bin/sh", "-c", "echo before; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo after; exit 3"]
        print(json.dumps(LocalRuntime(Path({str(tmp_path / "jobs")!r}), ()).submit(Job("job", argv, {ENVIRONMENT!r}))))
        sys.stdout.flush()
        time.sleep(60)
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert worker.stdout is not None
    with worker.stdout as out:
        out.readline()
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    (handle,) = handles(tmp_path)
    assert runtime.status(handle).state == "running"
    (tmp_path / "go").touch()
    assert end(runtime, handle).exit_code == 3
    assert runtime.logs(handle, 0)[0] == ["before", "after"]


def test_a_worker_killed_before_it_wrote_the_handle_leaves_no_stage(tmp_path: Path) -> None:
    program = f"""
        import os, signal, sys
        sys.path[:0] = {PATHS!r}
        from pathlib import Path
        from retro_airflow.runtimes import Job, local
        local._write = lambda path, text: os.kill(os.getpid(), signal.SIGKILL)
        argv = ["/bin/sh", "-c", "touch {tmp_path}/ran"]
        local.LocalRuntime(Path({str(tmp_path / "jobs")!r}), ()).submit(Job("job", argv, {ENVIRONMENT!r}))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode == -signal.SIGKILL
    time.sleep(0.3)
    assert not (tmp_path / "ran").exists()
    runtime = LocalRuntime(tmp_path / "jobs", ())
    handle = sh(runtime, f"touch {tmp_path}/ran")
    assert end(runtime, handle).state == "succeeded"
    assert (tmp_path / "ran").exists()


def test_cancel_ends_grandchildren_that_ignore_sigterm(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_runtime, "GRACE_S", 0.5)
    handle = sh(runtime, f"(trap '' TERM; echo $$; sh -c 'echo $$ > {tmp_path}/grandchild; sleep 60; sleep 60') & wait")
    wait_for(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text().endswith("\n"))
    grandchild = int((tmp_path / "grandchild").read_text())
    assert alive(grandchild)
    runtime.cancel(handle)
    wait_for(lambda: not alive(grandchild))
    wait_for(lambda: not local_runtime._members(handle))


def test_cancel_lets_the_stage_shut_down(runtime: LocalRuntime) -> None:
    handle = sh(runtime, "trap 'echo tidy; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: runtime.logs(handle, 0)[0] == ["ready"])
    runtime.cancel(handle)
    assert end(runtime, handle).exit_code == 9
    assert runtime.logs(handle, 0)[0][-1] == "tidy"


def test_a_pid_that_is_used_again_is_not_touched(runtime: LocalRuntime, tmp_path: Path) -> None:
    handle = sh(runtime, "sleep 60")
    stranger = handle | {"start_time": handle["start_time"] - 1}
    assert runtime.status(stranger).state == "lost"
    runtime.cancel(stranger)
    assert alive(handle["pid"])
    runtime.cancel(handle)


def test_a_lost_process(runtime: LocalRuntime) -> None:
    handle = sh(runtime, "echo ready; sleep 60")
    wait_for(lambda: runtime.logs(handle, 0)[0])
    for pid in local_runtime._members(handle):
        os.kill(pid, signal.SIGKILL)
    status = end(runtime, handle)  # Looks at it, so that the child is collected as well.
    assert status.state == "lost"
    assert str(handle["pid"]) in status.reason


def test_a_stage_that_outlives_its_shell_still_counts_as_running(runtime: LocalRuntime) -> None:
    handle = sh(runtime, "echo ready; sleep 60")
    wait_for(lambda: runtime.logs(handle, 0)[0])
    os.kill(handle["pid"], signal.SIGKILL)
    wait_for(lambda: not alive(handle["pid"]))
    assert runtime.status(handle).state == "running"
    assert sh(runtime, "true") == handle
    runtime.cancel(handle)
    assert end(runtime, handle).state == "lost"


def test_a_job_of_another_machine_is_lost(runtime: LocalRuntime) -> None:
    handle = sh(runtime, "true")
    status = runtime.status(handle | {"host": "elsewhere"})
    assert status.state == "lost"
    assert "elsewhere" in status.reason
    end(runtime, handle)


def test_choose(tmp_path: Path) -> None:
    config = settings.load({"RETRO_JOBS_DIR": str(tmp_path)})
    assert isinstance(runtimes.choose("local", config), LocalRuntime)
    with pytest.raises(ConfigurationError, match=r"'slurm'.*\n.*one of: docker, kubernetes, local"):
        runtimes.choose("slurm", config)
