"""Waits for a job without occupying a worker slot (``deferrable`` in runtime.toml)."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from retro_airflow import runtimes, settings
from retro_airflow.deployment import Deployment
from retro_airflow.runtimes import Handle, outages

POLL_S = 10.0


class StageTrigger(BaseTrigger):
    """Fires with the handle when its job has ended.

    ``deployment``: that of the task, as JSON. The triggerer has no DAG files, and so no runtime.toml beside them.
    """

    def __init__(self, handle: Handle, deployment: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = handle
        self.deployment = deployment

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"handle": self.handle, "deployment": self.deployment}
        return "retro_airflow.triggers.StageTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        config = dataclasses.replace(settings.load(), deployment=Deployment.model_validate(self.deployment))
        runtime = runtimes.choose(self.handle["runtime"], config)
        while (await outages.bridged_in_threads(lambda: runtime.status(self.handle))).state == "running":
            await asyncio.sleep(POLL_S)
        yield TriggerEvent(self.handle)  # type: ignore[no-untyped-call]
