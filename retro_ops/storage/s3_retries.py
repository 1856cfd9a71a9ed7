"""How requests to S3 are repeated: one place for attempts and waits.

botocore repeats a request that fails before its answer begins, up to ATTEMPTS times within about a minute. Added here:

1. An answer that is cut short, or whose checksum is wrong, is requested again: botocore has handed it over by then.
2. A store that has answered before and then is away is waited for, as long as ``be_patient`` says. Stages have hours of
   work to lose; pages and tasks of Airflow have their own retries and do not wait.

What a repeated request may not do twice (a conditional write, the completion of an upload) is checked where it is made:
it may have been carried out although its answer was lost.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from retro_ops.errors import TransientError
from retro_ops.progress import say
from retro_ops.storage.base import ConflictError

ATTEMPTS = 8
"""Attempts of botocore for one request, with waits of up to 20 s."""

ATTEMPTS_AT_A_BODY = 5

PATIENCE_S = 300.0
"""How long a stage waits for a store that went away."""

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 20.0

T = TypeVar("T")


class CutShortError(TransientError):
    """An answer that ended early, or whose checksum is wrong."""


class _Patience:
    seconds = 0.0
    answered = False
    """Whether the store has answered this process: if not, its address is probably wrong."""


def be_patient(seconds: float = PATIENCE_S) -> None:
    """Let this process wait ``seconds`` for a store that has answered before."""
    _Patience.seconds = seconds


def forget() -> None:
    """Take the store for one that has never answered, as after a change of its address."""
    _Patience.answered = False


def repeated(uri: str, request: Callable[[], T]) -> T:
    """The result of ``request``, which must be safe to repeat. Raises its last error if the store stays away."""
    first: float | None = None
    attempts, wait = 0, FIRST_WAIT_S
    while True:
        try:
            result = request()
        except ConflictError:
            raise
        except TransientError as error:
            now, attempts = time.monotonic(), attempts + 1
            first = now if first is None else first
            patient = _Patience.answered and now - first < _Patience.seconds
            if not (patient or (isinstance(error, CutShortError) and attempts < ATTEMPTS_AT_A_BODY)):
                raise
            say(f"{error.args[0].partition(chr(10))[0]}; trying {uri} again", logging.WARNING, event="store_retry")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)
        else:
            _Patience.answered = True
            return result
