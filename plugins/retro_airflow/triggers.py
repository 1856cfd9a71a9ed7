"""Waits for a job without a worker slot (``deferrable`` in runtime.toml)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from retro_airflow import runtimes, settings
from retro_airflow.runtimes import Handle

POLL_S = 10.0


class StageTrigger(BaseTrigger):
    """Fires with the handle once its job does not run any more."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = handle

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "retro_airflow.triggers.StageTrigger", {"handle": self.handle}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        runtime = runtimes.choose(self.handle["runtime"], settings.load())
        while (await asyncio.to_thread(runtime.status, self.handle)).state == "running":
            await asyncio.sleep(POLL_S)
        yield TriggerEvent(self.handle)  # type: ignore[no-untyped-call]
