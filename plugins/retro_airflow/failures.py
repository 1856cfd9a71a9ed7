"""Turns the failure of a stage into the exception that tells Airflow to retry or to fail at once.

Such an exception has one message for the user. Airflow would log it below some ten lines of its own traceback, and has
no setting for that, so here a processor of its logger shows the message alone. Other exceptions keep their traceback.
"""

import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from retro_ops.errors import EXIT_CODES_WITHOUT_RETRY, EXIT_USAGE, RetroError

CAUSE = "failure"
"""Key under which a failed task leaves its message for the gate."""

LONGEST_CAUSE = 2000

SIGNAL_EXIT_BASE = 128
"""A shell reports death by signal n as 128 + n."""

SIGKILL_EXIT = SIGNAL_EXIT_BASE + 9


class FailureError(AirflowException):
    """A failure that its message explains. A retry may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        _log_messages_alone()


class FinalFailureError(FailureError, AirflowFailException):
    """A failure that its message explains. A retry cannot help."""


def _log_messages_alone() -> None:
    processors = structlog.get_config()["processors"]
    if message_alone not in processors:
        processors.insert(0, message_alone)  # In place: loggers that exist already have the same list.


def message_alone(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor of structlog: replaces the traceback of a FailureError with its message."""
    given = event.get("exc_info")
    error = given if isinstance(given, BaseException) else sys.exception() if given is True else None
    if isinstance(error, FailureError):
        del event["exc_info"]
        event["event"] = str(error)
    return event


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn errors of ``retro_ops`` into Airflow's: one without a retry if that cannot help."""
    try:
        yield
    except RetroError as error:
        kind = FinalFailureError if error.exit_code in EXIT_CODES_WITHOUT_RETRY else FailureError
        raise kind(str(error)) from error


def of_exit_code(stage: str, exit_code: int, last_error: str, reason: str = "") -> FailureError:
    """The exception for a stage that ended with ``exit_code``.

    ``last_error``: the last error in the stage's log. ``reason``: anything else that the runtime knows.
    """
    if exit_code == EXIT_USAGE and not last_error:
        more = f" ({reason})" if reason else ""
        return FinalFailureError(
            f"{stage} refused its flags{more}; the log above names the first of them\n"
            "  What to do: if it does not know the flag, the stages are of another release than retro-airflow: build "
            "their image, or install retro-ops, from the same release. If it refuses the value, correct it"
        )
    said = "\n".join(filter(None, (last_error, reason))) or f"{stage} failed without a message; see the log above"
    if exit_code in EXIT_CODES_WITHOUT_RETRY:
        return FinalFailureError(f"{said}\n{stage} ended with exit code {exit_code}, so a retry would fail again")
    if exit_code == SIGKILL_EXIT:
        return FailureError(
            f"{stage} was killed (signal 9): {reason or 'probably out of memory'}. A retry starts it again.\n"
            "  What to do if it happens again: give it more memory (`resources` on the form or in runtime.toml), "
            "lower batch_size, or run fewer tasks at once"
        )
    if exit_code > SIGNAL_EXIT_BASE:
        return FailureError(f"{said}\n{stage} was ended by signal {exit_code - SIGNAL_EXIT_BASE}; a retry may succeed")
    return FailureError(f"{said}\n{stage} ended with exit code {exit_code}; a retry may succeed")
