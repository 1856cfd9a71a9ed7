"""The operator with the local runtime and real processes; only Airflow's task state is a dictionary."""

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, TaskDeferred
from retro_airflow import runtimes, settings, stage_operator, triggers
from retro_airflow.deployment import Deployment
from retro_airflow.runtimes import local
from retro_airflow.runtimes.local import _start_time
from retro_airflow.stage_operator import StageOperator
from retro_airflow.triggers import StageTrigger
from structlog.testing import capture_logs

from retro_ops.plan import paths
from retro_ops.plan.plan import Plan

Logged = list[MutableMapping[str, Any]]

pytestmark = pytest.mark.usefixtures("stub_command", "quick")


class TaskState(dict[str, Any]):
    """The part of Airflow's task_state_store that the operator uses."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_operator, "POLL_S", 0.05)


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Everything that is logged meanwhile; it grows."""
    with capture_logs() as entries:
        yield entries


def text(logged: Logged) -> str:
    return "\n".join(str(entry["event"]) for entry in logged)


@pytest.fixture
def state() -> TaskState:
    return TaskState()


@pytest.fixture(autouse=True)
def no_stage_left(stub_command: Path) -> Iterator[None]:
    yield
    for pid, _, _ in journal(stub_command):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def context(state: TaskState, states: dict[str, Any] | None = None) -> Context:
    """Context of a new try of the same task. ``states``: the states that Airflow returns for the task."""
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="t",
        map_index=-1,
        stats_tags={},
        get_task_states=lambda **_: states or {},
        xcom_push=lambda key, value: None,
    )
    return cast(Context, {"ti": ti, "task_state_store": state, "params": {}})


def stage(uri: str, name: str = "embed-chunks", shard: str | None = "a") -> StageOperator:
    return StageOperator(task_id="t", stage=name, arguments={"plan": uri, "shard": shard})


def journal(door: Path) -> list[tuple[int, str, str]]:
    if not (door / "journal").exists():
        return []
    rows = (line.split() for line in (door / "journal").read_text().splitlines())
    return [(int(pid), name, shard) for pid, name, shard in rows]


def hold(door: Path) -> Path:
    path = door / "hold.embed-chunks.a"
    path.touch()
    return path


def wait_for_stage(door: Path, number: int = 1) -> int:
    deadline = time.monotonic() + 15
    while len(journal(door)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return journal(door)[number - 1][0]


def in_thread(task: StageOperator, context_: Context) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(task.execute(context_))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_without_arguments_the_task_is_skipped(state: TaskState) -> None:
    with pytest.raises(AirflowSkipException, match="nothing to do for list-sources"):
        StageOperator(task_id="t", stage="list-sources", arguments={}).execute(context(state))


def test_the_result_follows_from_the_plan(
    plan: Plan,
    uri: str,
    state: TaskState,
    logged: Logged,
    tmp_path: Path,
) -> None:
    result = stage(uri).execute(context(state))
    report = paths.report_uri(plan, "embed-chunks", "a")
    assert result == {"stage": "embed-chunks", "plan": uri, "shard": "a", "report": report}
    assert "stage" in json.loads(Path(report).read_text())
    assert f"embed-chunks --plan {uri} --shard a" in text(logged)
    assert "embed-chunks is done" in text(logged)
    assert state == {}, "a key left here would make a later clear skip the work"
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [".lock"]


def test_the_plan_stage_returns_its_output(corpus: Path, state: TaskState, tmp_path: Path) -> None:
    output = str(tmp_path / "plan.json")
    arguments = {"root": "r", "dataset": "d", "corpus": str(corpus / "train"), "output": output, "seed": None}
    task = StageOperator(task_id="t", stage="plan", arguments=arguments)
    assert task.execute(context(state)) == {"plan": output}


@pytest.mark.parametrize(
    ("code", "kind"), [(65, AirflowFailException), (78, AirflowFailException), (2, AirflowFailException)]
)
def test_bad_input_fails_now(
    stub_command: Path,
    uri: str,
    state: TaskState,
    code: int,
    kind: type[Exception],
) -> None:
    (stub_command / "fail.embed-chunks.a").write_text(str(code))
    with pytest.raises(
        kind, match=f"a was told to fail\nembed-chunks ended with exit code {code}, so a retry would fail again"
    ):
        stage(uri).execute(context(state))


@pytest.mark.parametrize(
    ("code", "text"), [(1, "exit code 1"), (75, "exit code 75"), (137, "memory"), (139, "signal 11")]
)
def test_other_failures_are_retried(
    stub_command: Path,
    uri: str,
    state: TaskState,
    code: int,
    text: str,
) -> None:
    (stub_command / "fail.embed-chunks.a").write_text(str(code))
    with pytest.raises(AirflowException, match=text) as caught:
        stage(uri).execute(context(state))
    assert not isinstance(caught.value, AirflowFailException)
    (stub_command / "fail.embed-chunks.a").unlink()
    assert stage(uri).execute(context(state))["shard"] == "a"
    assert len(journal(stub_command)) == 2


def test_success_without_a_report_is_no_success(
    uri: str,
    state: TaskState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETRO_STAGE_COMMAND", "true")
    with pytest.raises(AirflowException, match=r"report\.json is missing"):
        stage(uri).execute(context(state))


def test_lines_are_logged_while_the_stage_runs(
    stub_command: Path,
    uri: str,
    state: TaskState,
    logged: Logged,
) -> None:
    held = hold(stub_command)
    thread, outcome = in_thread(stage(uri), context(state))
    deadline = time.monotonic() + 15
    while "a is held for the 2. time" not in text(logged):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not outcome
    held.unlink()
    thread.join()
    assert outcome[0]["shard"] == "a"


def test_a_retry_reconnects_to_the_running_stage(
    stub_command: Path,
    uri: str,
    state: TaskState,
    logged: Logged,
) -> None:
    """The first try only submits, as if its process had died right after."""
    held = hold(stub_command)
    state.set("job", stage(uri).submit_job(context(state)))
    pid = wait_for_stage(stub_command)
    thread, outcome = in_thread(stage(uri), context(state))
    time.sleep(0.3)
    held.unlink()
    thread.join()
    assert outcome[0]["shard"] == "a"
    assert [row[0] for row in journal(stub_command)] == [pid]
    assert "a is held" in text(logged)
    assert "embed-chunks is done" in text(logged)
    assert state == {}


def test_a_retry_finds_a_stage_whose_handle_was_not_stored(
    stub_command: Path,
    uri: str,
    state: TaskState,
) -> None:
    held = hold(stub_command)
    stage(uri).submit_job(context(state))
    wait_for_stage(stub_command)
    thread, outcome = in_thread(stage(uri), context(state))
    time.sleep(0.2)
    held.unlink()
    thread.join()
    assert outcome[0]["shard"] == "a"
    assert len(journal(stub_command)) == 1


def test_a_retry_of_a_stage_that_succeeded_meanwhile(
    stub_command: Path,
    uri: str,
    state: TaskState,
    logged: Logged,
) -> None:
    first = stage(uri)
    handle = first.submit_job(context(state))
    state.set("job", handle)
    while first._runtime(handle).status(handle).state == "running":
        time.sleep(0.02)
    assert stage(uri).execute(context(state))["shard"] == "a"
    assert "embed-chunks is done" in text(logged)
    assert len(journal(stub_command)) == 1
    assert state == {}


def test_a_stage_with_other_arguments_is_replaced(stub_command: Path, uri: str, state: TaskState) -> None:
    hold(stub_command)
    first = stage(uri)
    handle = first.submit_job(context(state))
    state.set("job", handle)
    wait_for_stage(stub_command)
    assert stage(uri, shard="b").execute(context(state))["shard"] == "b"
    assert first._runtime(handle).status(handle).state != "running"


def test_on_kill_ends_the_stage(stub_command: Path, uri: str, state: TaskState) -> None:
    hold(stub_command)
    task = stage(uri)
    thread, outcome = in_thread(task, context(state))
    pid = wait_for_stage(stub_command)
    task.on_kill()
    thread.join(4)
    assert isinstance(outcome[0], AirflowException)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("of_the_task", "lives_on"),
    [(None, True), ("scheduled", True), ("running", True), ("restarting", False), ("failed", False), ("gone", False)],
)
def test_on_kill_of_a_try_that_is_not_the_current_one(
    stub_command: Path, uri: str, of_the_task: str | None, lives_on: bool
) -> None:
    """Airflow answers nothing to a try that it replaced; whether the stage is still wanted, the task's state says."""
    hold(stub_command)
    states = {} if of_the_task == "gone" else {"r": {"t": of_the_task}}
    state = TaskState()
    task = stage(uri)
    thread, outcome = in_thread(task, context(state, states))
    pid = wait_for_stage(stub_command)
    while not state:
        time.sleep(0.02)
    state.clear()
    task.on_kill()
    thread.join(4)
    assert isinstance(outcome[0], AirflowException)
    assert (_start_time(pid) is not None) == lives_on


def test_on_kill_after_a_timeout_ends_the_stage(stub_command: Path, uri: str, state: TaskState) -> None:
    hold(stub_command)
    task, this = stage(uri), context(state)
    task._context = this
    state.set("job", task.submit_job(this))
    pid = wait_for_stage(stub_command)
    task.on_kill()
    assert _start_time(pid) is None


def test_a_kill_before_the_handle_is_known_still_ends_the_stage(
    stub_command: Path,
    uri: str,
    state: TaskState,
) -> None:
    hold(stub_command)
    task = stage(uri)
    task.on_kill()
    with pytest.raises(AirflowException, match="Airflow ended this try"):
        task.execute(context(state))
    config = settings.load()
    assert runtimes.choose("local", config).status(state["job"]).state != "running"


def test_an_unknown_runtime_fails_without_retry(
    uri: str,
    state: TaskState,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETRO_RUNTIME", "abacus")
    with pytest.raises(AirflowFailException, match="'abacus'"):
        stage(uri).execute(context(state))


def test_a_run_may_choose_another_runtime_than_the_deployment(
    uri: str, state: TaskState, stub_command: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRO_RUNTIME", "docker")
    chosen = context(state)
    chosen["params"]["runtime"] = "local"
    stage(uri).execute(chosen)
    assert [(name, shard) for _, name, shard in journal(stub_command)] == [("embed-chunks", "a")]


def test_flags() -> None:
    arguments: stage_operator.Arguments = {
        "plan": "p",
        "shard-index": True,
        "use-gpus": False,
        "seed": None,
        "corpus": "-",
    }
    assert stage_operator.flags(arguments) == ["--plan", "p", "--shard-index", "--corpus=-"]


def test_a_deferred_task_gives_its_slot_back_and_ends_with_its_stage(
    plan: Plan, uri: str, state: TaskState, stub_command: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deployment, "defers", lambda self, runtime: True)
    monkeypatch.setattr(triggers, "POLL_S", 0.05)
    held = hold(stub_command)
    with pytest.raises(TaskDeferred) as deferred:
        stage(uri).execute(context(state))
    path, arguments = deferred.value.trigger.serialize()
    assert path == f"{StageTrigger.__module__}.{StageTrigger.__qualname__}"
    trigger = StageTrigger(**json.loads(json.dumps(arguments)))

    async def fire() -> Any:
        watching = asyncio.ensure_future(anext(aiter(trigger.run())))
        await asyncio.sleep(0.3)
        assert not watching.done()
        held.unlink()
        return (await watching).payload

    event = asyncio.run(fire())
    assert deferred.value.method_name == "resume"
    result = stage(uri).resume(context(state), event)
    assert result["report"] == paths.report_uri(plan, "embed-chunks", "a")
    assert "embed-chunks is done" in text(logged)


def test_the_stage_sees_no_secret_of_airflow() -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/root",
        "AWS_SECRET_ACCESS_KEY": "needed",
        "HF_TOKEN": "needed",
        "RETRO_X": "needed",
        "TOKENIZERS_PARALLELISM": "false",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "secret",
        "AIRFLOW_CONN_X": "secret",
        "_AIRFLOW_PROCESS_CONTEXT": "internal",
        "PYTHONPATH": "/opt/airflow",
        **dict.fromkeys(("POSTGRES_PASSWORD", "GITHUB_TOKEN", "GITHUB_PAT", "DATABASE_URL", "PGPASSWORD"), "secret"),
        **dict.fromkeys(("SLACK_WEBHOOK_URL", "OPENAI_APIKEY", "MY_AWS_KEY", "PATHS", "XHOME"), "secret"),
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "https_proxy": "http://proxy",
        "LC_ALL": "C",
        "MYCERT": "needed",
        "RETRO_STAGE_VARIABLES": "MYCERT, NOT_SET",
    }
    needed = {"PATH", "HOME", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RETRO_X", "TOKENIZERS_PARALLELISM", "MYCERT"}
    needed |= {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "https_proxy", "LC_ALL", "RETRO_STAGE_VARIABLES"}
    assert set(local.of_worker(environ)) == needed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"level": "warning", "message": "50% done"}', (logging.WARNING, "50% done")),
        ('{"level": "info"}', (logging.INFO, '{"level": "info"}')),
        ('{"level": "odd", "message": "m"}', (logging.INFO, '{"level": "odd", "message": "m"}')),
        ("[1]", (logging.INFO, "[1]")),
        ('{"level": "info", "message": "\\u001b[2Jgone"}', (logging.INFO, r"\x1b[2Jgone")),
        ("\x1b[2Jhttp://u:p@h", (logging.INFO, r"\x1b[2Jhttp://u:***@h")),
        ("[" * 100_000, (logging.INFO, "[" * 100_000)),
        ("Traceback (most recent call last):", (logging.INFO, "Traceback (most recent call last):")),
    ],
)
def test_parse_log_line(line: str, expected: tuple[int, str]) -> None:
    assert stage_operator.parse_log_line(line) == expected
