"""The operator for all stages: it starts a job, watches it, and finds it again after the death of its worker."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from airflow.sdk import BaseOperator, Context, ResumableJobMixin
from airflow.sdk.exceptions import AirflowSkipException

from retro_airflow import failures, links, metrics, object_store, runtimes, settings, task_states
from retro_airflow.failures import FailureError
from retro_airflow.runtimes import Handle, Job, Position, outages
from retro_airflow.task_states import STARTING_OR_RUNNING
from retro_airflow.triggers import StageTrigger
from retro_ops.errors import printable

POLL_S = 0.5
MAX_POLL_S = 2.0

Arguments = Mapping[str, str | bool | None]
T = TypeVar("T")


class StageOperator(ResumableJobMixin, BaseOperator):
    """Run ``retro-ops STAGE --flag value …`` and return the locations of its result.

    ``arguments`` maps flag names without dashes to values: None leaves a flag out, True is a flag without a value. It
    may be a function of (context, jinja_env) that returns such a mapping. If it is empty, the task is skipped.

    The returned locations follow from the plan alone, not from the output of the process.
    """

    template_fields: Sequence[str] = ("arguments", "command")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json", "command": "bash"}
    operator_extra_links = links.LINKS
    external_id_key = "job"
    ui_color = "#e6f0ea"

    def __init__(self, *, stage: str, arguments: Arguments | Callable[..., Arguments], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.arguments = arguments
        # A template field only so that the UI shows it. Fields are rendered in order, `arguments` before this one.
        self.command: str | Callable[..., str] = rendered_command
        self._handle: Handle | None = None
        self._context: Context | None = None
        self._watching = False
        self._killed = False
        self._position: Position = None
        self._waits_for = ""
        self._last_error = ""
        self._result: dict[str, str] | None = None

    def execute(self, context: Context) -> dict[str, str]:
        self._context = context
        if not self.arguments:  # Skipped here, since Airflow logs an exception during rendering as an error.
            raise AirflowSkipException(f"This run has nothing to do for {self.stage}")
        with failures.airflow_errors():
            self.log.info("To run this by hand: %s", self._command(context))
            if page := links.absolute(links.LINKS[0].get_link(self, ti_key=None)):  # The log shows it as a link.
                self.log.info("The run and its shards: %s", page)
            object_store.use_connection(settings.load().deployment.object_store.connection)
            return self._watched(lambda: dict(self.execute_resumable(context)))

    def resume(self, context: Context, event: Any) -> dict[str, str]:
        """Continue after the deferral: the job has ended."""
        self._context = context
        with failures.airflow_errors():
            object_store.use_connection(settings.load().deployment.object_store.connection)
            return self._watched(lambda: self._poll(event, context))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Called by Airflow's OpenLineage provider; see `lineage`."""
        if self.stage != "publish" or not isinstance(self.arguments, Mapping):
            return None
        from retro_airflow import lineage

        object_store.use_connection(settings.load().deployment.object_store.connection)
        return lineage.of_published(str(self.arguments["plan"]))

    def submit_job(self, context: Context) -> Handle:
        config = settings.load()
        job = Job(
            name=self._job_name(context),
            arguments=self._stage_arguments(),
            environment=os.environ,
            task=_task(context),
            resources=config.deployment.resources_of(self.stage, context["params"].get("resources")),
        )
        runtime = runtimes.choose(_runtime_of(context), config)
        self._handle = self._bridged(lambda: runtime.submit(job))
        return self._handle

    def get_job_status(self, external_id: Any, context: Context) -> str:
        """State of the job of an earlier try; ``superseded`` if it ran another command."""
        runtime = self._runtime(external_id)
        if external_id["name"] != self._job_name(context):
            self._bridged(lambda: runtime.cancel(external_id))
            return "superseded"
        return self._bridged(lambda: runtime.status(external_id)).state

    def is_job_active(self, status: str) -> bool:
        return status == "running"

    def is_job_succeeded(self, status: str) -> bool:
        return status == "succeeded"

    def poll_until_complete(self, external_id: Any, context: Context) -> dict[str, str]:  # type: ignore[override]
        """Watch the job until it ends, and return the result: after a reconnect the mixin takes it from here."""
        deployment = settings.load().deployment
        if deployment.defers(external_id["runtime"]):
            trigger = StageTrigger(external_id, deployment.model_dump(mode="json"))
            self.defer(trigger=trigger, method_name="resume")
        return self._poll(external_id, context)

    def _poll(self, external_id: Handle, context: Context) -> dict[str, str]:
        self._handle = external_id
        runtime = self._runtime(external_id)
        pause_s = POLL_S
        while True:
            status = self._bridged(lambda: runtime.status(external_id))
            self._print_new_lines(external_id)
            if self._killed:
                self._end_stage()
                raise FailureError(f"{self.stage} is no longer watched: Airflow ended this try")
            if status.state != "running":
                break
            if status.reason and status.reason != self._waits_for:
                self._waits_for = status.reason
                self.log.info("%s is not running yet: %s", self.stage, status.reason)
            self._pause(pause_s)
            pause_s = min(pause_s * 1.2, MAX_POLL_S)
        if status.state != "succeeded":
            self._bridged(lambda: runtime.forget(external_id))
        if status.state == "lost":
            raise FailureError(f"{self.stage} was lost: {status.reason}. A retry starts it again")
        if status.exit_code:
            raise failures.of_exit_code(self.stage, status.exit_code, self._last_error, status.reason)
        return self.get_job_result(external_id, context)

    def get_job_result(self, external_id: Any, context: Context) -> dict[str, str]:
        """Locations of the result, if the report exists. Forgets the job."""
        if self._result is None:
            self._print_new_lines(external_id)
            result = self._locations()
            # If this task is cleared later, it must run the stage again instead of finding the old job.
            context["task_state_store"].delete(self.external_id_key)
            self._bridged(lambda: self._runtime(external_id).forget(external_id))
            self._result = result
        return self._result

    def on_kill(self) -> None:
        """Airflow ends this try. Called from a signal handler, or after a timeout."""
        self._killed = True
        if not self._watching:
            self._end_stage()
        # Otherwise the loop that watches the stage ends it: unlike a signal handler, it may call Airflow.

    def _end_stage(self) -> None:
        if self._handle is None:
            return
        if self._has_newer_try():
            self.log.warning("%s continues: a newer try of this task watches it", self.stage)
            return
        self._runtime(self._handle).cancel(self._handle)
        self.log.warning("%s was cancelled", self.stage)

    def _has_newer_try(self) -> bool:
        """Whether a newer try of this task runs or is about to, so that the stage belongs to it.

        When a scheduler dies, its successor schedules running tasks again, and Airflow then ends the old task
        processes. Their stages must continue, or each death of a scheduler would end them all.
        """
        assert self._context is not None
        try:
            # The state is stored under the id of the current try: without it, this try is no longer the current one.
            if self._context["task_state_store"].get(self.external_id_key) is not None:
                return False
            return task_states.is_one_of(STARTING_OR_RUNNING, self._context["ti"], _task(self._context))
        except Exception:
            self.log.warning(
                "Airflow does not answer, so the stage is cancelled; a retry starts it again", exc_info=True
            )
            return False

    def _pause(self, seconds: float) -> None:
        """Sleep in short steps, since a signal does not interrupt a sleep."""
        end = time.monotonic() + seconds
        while not self._killed and time.monotonic() < end:
            time.sleep(0.1)

    def _bridged(self, call: Callable[[], T]) -> T:
        """What a call of the runtime returns, through outages of its engine or API server."""
        return outages.bridged(call, self._pause, lambda: self._killed)

    def _watched(self, work: Callable[[], dict[str, str]]) -> dict[str, str]:
        try:
            self._watching = True
            with failures.airflow_errors():
                return work()
        except FailureError as error:
            if page := links.absolute(links.BAD_RECORDS.get_link(self, ti_key=None)):
                self.log.info("Bad records, if there are any: %s", page)
            assert self._context is not None
            self._context["ti"].xcom_push(key=failures.CAUSE, value=str(error)[: failures.LONGEST_CAUSE])
            raise
        except KeyboardInterrupt:  # `airflow dags test` in a terminal: the stage has a session of its own.
            self._end_stage()
            raise
        finally:
            self._watching = False

    def _stage_arguments(self) -> list[str]:
        assert not callable(self.arguments), "template fields are rendered before execute()"
        return [self.stage, *flags(self.arguments)]

    def _command(self, context: Context) -> str:
        return shlex.join(runtimes.choose(_runtime_of(context), settings.load()).command(self._stage_arguments()))

    def _job_name(self, context: Context) -> str:
        """Name of the job: the same for every try of a task with the same command, and valid as a DNS label."""
        task = _task(context)
        identity = [settings.load().deployment.deployment, dataclasses.astuple(task), self._stage_arguments()]
        index = "" if task.map_index < 0 else f"-{task.map_index}"
        readable = re.sub(r"[^a-z0-9]+", "-", f"{task.task_id.rpartition('.')[2]}{index}".lower())
        return f"retro-{readable[:40].strip('-')}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"

    def _runtime(self, handle: Handle) -> runtimes.Runtime:
        if handle["runtime"] != getattr(self, "_runtime_name", None):
            self._chosen = runtimes.choose(handle["runtime"], settings.load())
            self._runtime_name = handle["runtime"]
        return self._chosen

    def _print_new_lines(self, handle: Handle) -> None:
        while True:
            lines, position = self._bridged(lambda: self._runtime(handle).logs(handle, self._position))
            for line in lines:
                level, message = parse_log_line(line)
                self.log.log(level, message)
                if level >= logging.ERROR:
                    self._last_error = message
            if position == self._position:
                return
            self._position = position

    def _locations(self) -> dict[str, str]:
        """Locations for the next tasks. Raises FailureError if an output of the stage is missing."""
        from retro_ops.plan.locations import locations
        from retro_ops.storage import read_ahead, store

        assert not callable(self.arguments)
        given = {key: value for key, value in self.arguments.items() if isinstance(value, str)}
        expected = locations(self.stage, given, store.read)
        is_there = read_ahead.side_by_side(store.exists, expected.markers)
        for marker, exists in zip(expected.markers, is_there, strict=True):
            if not exists:
                raise FailureError(
                    f"{self.stage} ended without an error, but {marker} is missing. A retry starts it again"
                )
        dataset = links.RUN_FILE.fullmatch(str(given.get("plan", "")))
        metrics.stage_done(self.stage, dataset["dataset"] if dataset else "", expected.markers)
        return expected.result


def rendered_command(context: Context, jinja_env: Any = None) -> str:
    """The command line of the task in ``context``, as the UI shows it."""
    task = context["task"]
    assert isinstance(task, StageOperator)
    with failures.airflow_errors():
        return task._command(context)


def _runtime_of(context: Context) -> str:
    """The runtime of the trigger form, else that of the deployment."""
    return context["params"].get("runtime") or settings.load().deployment.runtime


def _task(context: Context) -> runtimes.Task:
    ti = context["ti"]
    return runtimes.Task(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)


def flags(arguments: Arguments) -> list[str]:
    """``{"plan": "a", "shard-index": True, "seed": None}`` -> ``["--plan", "a", "--shard-index"]``."""
    argv: list[str] = []
    for name, value in arguments.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            # One word if the value begins with a dash.
            argv += [f"--{name}", value] if not value.startswith("-") else [f"--{name}={value}"]
    return argv


def parse_log_line(line: str) -> tuple[int, str]:
    """Level and text of a line of a stage's log; a line that is not JSON of the stage is its own text."""
    try:
        entry = json.loads(line)
        level = logging.getLevelNamesMapping()[str(entry["level"]).upper()]
        return level, printable(str(entry["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return logging.INFO, printable(line)
