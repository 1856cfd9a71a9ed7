"""Turns the failure of a stage into the exception that tells Airflow to retry or to fail at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from retro_ops.errors import EXIT_CODES_WITHOUT_RETRY, RetroError

SIGNAL_EXIT_BASE = 128
"""A shell reports death by signal n as 128 + n."""

SIGKILL_EXIT = SIGNAL_EXIT_BASE + 9


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn errors of ``retro_ops`` into Airflow's: AirflowFailException if a retry cannot help."""
    try:
        yield
    except RetroError as error:
        kind = AirflowFailException if error.exit_code in EXIT_CODES_WITHOUT_RETRY else AirflowException
        raise kind(str(error)) from error


def of_exit_code(stage: str, exit_code: int, last_error: str, reason: str = "") -> AirflowException:
    """The exception for a stage that ended with ``exit_code``.

    ``last_error``: the last error in the stage's log. ``reason``: anything else that the runtime knows.
    """
    details = "".join(f": {text}" for text in (reason, last_error) if text) or "; see the log above"
    if exit_code in EXIT_CODES_WITHOUT_RETRY:
        return AirflowFailException(f"{stage} failed (exit code {exit_code}, so a retry would fail again){details}")
    if exit_code == SIGKILL_EXIT:
        return AirflowException(
            f"{stage} was killed (signal 9): {reason or 'probably because memory ran out'}. A retry starts it again. "
            f"If it happens again, give it more memory (`resources` on the form or in runtime.toml), "
            f"lower batch_size, or run fewer tasks at once"
        )
    if exit_code > SIGNAL_EXIT_BASE:
        return AirflowException(f"{stage} was ended by signal {exit_code - SIGNAL_EXIT_BASE}{details}")
    return AirflowException(f"{stage} failed (exit code {exit_code}, a retry may succeed){details}")
