"""Outages: while an engine or an API server does not answer, what is asked of it is asked again."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from retro_ops.errors import TransientError

T = TypeVar("T")

OUTAGE_S = 600.0
"""How long a call is repeated: longer than the restart of an API server or an upgrade of its machine takes."""

LONGEST_PAUSE_S = 10.0

log = logging.getLogger(__name__)


class OutageError(TransientError):
    """The engine or API server does not answer, or answers that it cannot now. Its jobs may well go on."""


def bridged(call: Callable[[], T], pause: Callable[[float], None] = time.sleep, ended: Callable[[], bool] = bool) -> T:
    """What ``call`` returns. While it raises OutageError it is repeated, for at most OUTAGE_S or until ``ended``."""
    return Retrying(**_options(ended), sleep=pause)(call)


async def bridged_in_threads(call: Callable[[], T]) -> T:
    """As ``bridged``, each call in a thread; none of them is held between two calls."""

    async def once() -> T:
        return await asyncio.to_thread(call)

    return await AsyncRetrying(**_options(bool))(once)


def _options(ended: Callable[[], bool]) -> dict[str, Any]:
    def is_enough(state: RetryCallState) -> bool:
        return ended() or (state.seconds_since_start or 0) >= OUTAGE_S

    return {
        "retry": retry_if_exception_type(OutageError),
        "wait": wait_exponential(max=LONGEST_PAUSE_S),
        "stop": is_enough,
        "before_sleep": _say,
        "reraise": True,
    }


def _say(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None:
        log.warning("%s\n  The task waits up to %.0f minutes for that", state.outcome.exception(), OUTAGE_S / 60)
    elif state.attempt_number % 10 == 0:
        log.warning("Still no answer after %.0f s", state.seconds_since_start)
