"""Where a stage runs. The operator knows only this protocol.

A handle is JSON, so that a retry in another process finds the job that a dead worker left behind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from retro_airflow.deployment import Resources
from retro_airflow.settings import Settings
from retro_ops.errors import ConfigurationError

Handle = dict[str, Any]
"""Has ``runtime``, ``name`` (of the job) and ``task``; other keys are private to the runtime."""

Position = Any
"""Position in a log, as JSON; None: its beginning. Its content is private to the runtime."""

OF_THE_STORE = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"),
    *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ENDPOINT"),
)
"""Variables of the worker that give a stage in a container access to the object store."""


@dataclass(frozen=True)
class Task:
    """The task that a job belongs to; ``map_index`` is -1 if the task is not mapped."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


NO_TASK = Task("", "", "", -1)
NO_LIMITS = Resources()


@dataclass(frozen=True)
class Job:
    """One call of ``retro-ops``. Jobs with the same ``name`` are the same job."""

    name: str
    arguments: Sequence[str]
    """The stage and its flags, without ``retro-ops``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The worker's environment, with the keys of the object store."""
    task: Task = NO_TASK
    resources: Resources = NO_LIMITS


@dataclass(frozen=True)
class Status:
    """``lost``: the job is gone and left no exit code. ``reason``: details beyond the code."""

    state: Literal["running", "succeeded", "failed", "lost"]
    exit_code: int | None = None
    reason: str = ""


class Runtime(Protocol):
    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command that runs the same stage by hand."""

    def submit(self, job: Job) -> Handle:
        """Start a job, or return the running job of this name."""

    def status(self, handle: Handle) -> Status: ...

    def logs(self, handle: Handle, position: Position) -> tuple[list[str], Position]:
        """Some complete lines after ``position``, and the position after them. No lines: nothing new."""

    def cancel(self, handle: Handle) -> None:
        """End the job and all its processes, within 5 s."""

    def forget(self, handle: Handle) -> None:
        """Remove an ended job, after its log was read."""

    def jobs(self) -> list[Handle]:
        """All running jobs of this deployment."""


def choose(name: str, settings: Settings) -> Runtime:
    """The runtime called ``name``. Raises ConfigurationError if there is none, or its client is not installed."""
    runtimes: dict[str, Callable[[Settings], Runtime]] = {
        "local": _local,
        "docker": _docker,
        "kubernetes": _kubernetes,
    }
    if name not in runtimes:
        raise ConfigurationError(f"there is no runtime {name!r}", f"use one of: {', '.join(sorted(runtimes))}")
    try:
        return runtimes[name](settings)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the runtime {name!r} needs {error.name}, which is not installed", f"install retro-airflow[{name}]"
        ) from error


def _local(settings: Settings) -> Runtime:
    from retro_airflow.runtimes.local import LocalRuntime

    return LocalRuntime(settings.jobs_dir, settings.stage_command)


def _docker(settings: Settings) -> Runtime:
    from retro_airflow.runtimes.docker import DockerRuntime

    return DockerRuntime(settings.deployment.docker, settings.deployment.deployment)


def _kubernetes(settings: Settings) -> Runtime:
    from retro_airflow.runtimes.kubernetes import KubernetesRuntime

    return KubernetesRuntime(settings.deployment.kubernetes, settings.deployment.deployment)
