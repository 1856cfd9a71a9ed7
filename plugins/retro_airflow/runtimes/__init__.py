"""Where a stage runs. The operator knows this protocol only.

A handle is JSON, so that a retry in another process finds the job that a dead worker left running.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from retro_airflow.settings import Settings
from retro_ops.errors import ConfigurationError

Handle = dict[str, Any]


@dataclass(frozen=True)
class Status:
    """``lost``: the job is gone and left no exit code, ``reason`` says what is known about it."""

    state: Literal["running", "succeeded", "failed", "lost"]
    exit_code: int | None = None
    reason: str = ""


class Runtime(Protocol):
    def submit(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> Handle:
        """Start a job, or return the one of this name that still runs."""

    def status(self, handle: Handle) -> Status: ...

    def logs(self, handle: Handle, offset: int) -> tuple[list[str], int]:
        """Some complete lines from ``offset`` on and the offset after them; no lines: nothing new."""

    def cancel(self, handle: Handle) -> None:
        """End the job and all it started, within 5 s."""

    def forget(self, handle: Handle) -> None:
        """Remove what a finished job left behind."""


def choose(name: str, settings: Settings) -> Runtime:
    """The runtime called ``name`` (RETRO_RUNTIME)."""
    runtimes: dict[str, Callable[[Settings], Runtime]] = {"local": _local}
    if name not in runtimes:
        raise ConfigurationError(
            f"there is no runtime {name!r}", f"set RETRO_RUNTIME to one of: {', '.join(sorted(runtimes))}"
        )
    return runtimes[name](settings)


def _local(settings: Settings) -> Runtime:
    from retro_airflow.runtimes.local import LocalRuntime

    return LocalRuntime(settings.jobs_dir)
