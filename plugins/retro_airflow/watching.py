"""Starts a refresh when the files of the corpus change: an asset whose watcher lists folders of any store."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronDataIntervalTimetable
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from retro_airflow import object_store
from retro_airflow.settings import Settings
from retro_ops.errors import ConfigurationError, TransientError

SEEN = "listing"
"""Key of Airflow's asset state store under which the trigger keeps the digest of the last listing that it announced."""

GLOB = set("*?[{")

Listing = Mapping[str, tuple[int, float]]
"""Bytes and time of each file, by location."""


class CorpusTrigger(BaseEventTrigger):
    """Fires when files of ``folders`` were added, changed or removed, once two listings in a row are equal.

    A file that is still being uploaded, or one of many, thus starts one run and not several. What was announced last is
    in Airflow's asset state store, so changes while the triggerer is down are announced when it is back. The first
    listing ever is what later ones are compared with.

    ``every_s``: seconds between two listings. ``connection``: of the object store, as in runtime.toml.
    """

    def __init__(self, folders: Sequence[str], every_s: float, connection: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folders, self.every_s, self.connection = tuple(folders), every_s, connection

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"folders": list(self.folders), "every_s": self.every_s, "connection": self.connection}
        return "retro_airflow.watching.CorpusTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await self._connect()
        assert self.asset_state_store is not None
        announced = await self.asset_state_store.aget(SEEN)
        before: Listing | None = None
        while True:
            found = await self._listing()
            if found is not None:
                now = digest(found)
                if announced is None:
                    await self.asset_state_store.aset(SEEN, now)
                    announced = now
                elif now != announced and found == before:
                    yield TriggerEvent({"folders": list(self.folders), "files": len(found)})  # type: ignore[no-untyped-call]
                    # Afterwards: if the triggerer ends in between, a second run finds nothing to do.
                    await self.asset_state_store.aset(SEEN, now)
                    announced = now
            before = found
            await asyncio.sleep(self.every_s)

    async def _listing(self) -> Listing | None:
        """None if the store does not answer."""
        try:
            return await asyncio.to_thread(listing, self.folders)
        except TransientError as error:
            self.log.warning("The corpus was not listed: %s", error)
            await self._connect()  # Its keys may have expired.
            return None

    async def _connect(self) -> None:
        # Not asyncio.to_thread: a connection is asked for through the event loop of the triggerer.
        await sync_to_async(object_store.use_connection, thread_sensitive=False)(self.connection)


def listing(folders: Iterable[str]) -> Listing:
    """All files below ``folders``, as the corpus is read: also those in linked folders."""
    from retro_ops.storage import store

    return {
        entry.uri: (entry.bytes, entry.modified)
        for folder in folders
        for entry in store.at(folder).objects(folder, follow_links=True)
    }


def digest(found: Listing) -> str:
    """Equal for equal listings."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def schedule(config: Settings) -> Any:
    """The schedule of a refresh: by time, by changes of the corpus, by both, or None. Raises ConfigurationError."""
    by_time = CronDataIntervalTimetable(config.refresh_schedule, config.timezone) if config.refresh_schedule else None
    if not config.refresh_watch:
        return by_time
    for folder in config.refresh_watch:
        if GLOB & set(folder) or not (folder.startswith("/") or "://" in folder):
            raise ConfigurationError(
                f"RETRO_REFRESH_WATCH: {folder!r} is not a folder",
                "name full paths or s3://… of folders, without patterns",
            )
        if folder.startswith(("hf://", "http://", "https://")):
            raise ConfigurationError(
                f"RETRO_REFRESH_WATCH: files of {folder!r} have no times to compare",
                "watch a folder or a bucket, or refresh by RETRO_REFRESH_SCHEDULE",
            )
    trigger = CorpusTrigger(config.refresh_watch, config.refresh_watch_s, config.deployment.object_store.connection)
    first = config.refresh_watch[0]
    corpus = Asset(
        name=f"corpus of {config.dataset}",
        uri=first if "://" in first else f"file://{first}",
        watchers=[AssetWatcher(name="files", trigger=trigger)],
    )
    return AssetOrTimeSchedule(timetable=by_time, assets=[corpus]) if by_time else [corpus]
