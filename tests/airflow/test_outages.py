"""Outages of an engine or an API server, and the calls that are repeated through them."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from retro_airflow.runtimes import outages
from retro_airflow.runtimes.outages import OutageError, bridged, bridged_in_threads

from retro_ops.errors import TransientError


class Server:
    """Fails ``failures`` times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0
        self.pauses: list[float] = []

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


def test_a_call_is_repeated_until_the_outage_is_over(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(12, OutageError("the engine does not answer"))
    with caplog.at_level(logging.WARNING):
        assert bridged(server, server.pauses.append) == "answer"
    assert len(server.pauses) == 12
    assert max(server.pauses) == outages.LONGEST_PAUSE_S
    first, later = (record.getMessage() for record in caplog.records)
    assert "the engine does not answer" in first
    assert "up to 10 minutes" in first
    assert "Still no answer" in later


def test_an_outage_ends_the_call_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "OUTAGE_S", 0)
    with pytest.raises(OutageError, match="gone"):
        bridged(Server(2, OutageError("gone")))


def test_a_try_that_airflow_ended_waits_for_nothing() -> None:
    server = Server(2, OutageError("gone"))
    with pytest.raises(OutageError, match="gone"):
        bridged(server, ended=lambda: True)
    assert server.calls == 1


def test_other_errors_are_not_repeated() -> None:
    server = Server(1, TransientError("the quota is used up"))
    with pytest.raises(TransientError, match="quota"):
        bridged(server)
    assert server.calls == 1


def test_a_triggerer_waits_without_a_thread() -> None:
    """Its one thread does other work during the pause."""
    server = Server(1, OutageError("gone"))

    async def beside() -> tuple[int, str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waiting = asyncio.create_task(bridged_in_threads(server))
        while server.calls == 0:
            await asyncio.sleep(0.01)
        calls = await asyncio.to_thread(lambda: server.calls)
        return calls, await waiting

    assert asyncio.run(beside()) == (1, "answer")
