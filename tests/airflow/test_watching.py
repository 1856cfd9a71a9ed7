"""The watched corpus: when the trigger fires, and the schedule of a refresh."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AssetOrTimeSchedule, CronDataIntervalTimetable
from airflow.serialization.serialized_objects import BaseSerialization
from retro_airflow import object_store, settings, watching
from retro_airflow.watching import CorpusTrigger

from retro_ops.errors import ConfigurationError
from retro_ops.storage import s3_client, store

PLACE = {"RETRO_ROOT": "/data", "RETRO_DATASET": "demo"}


class State(dict[str, Any]):
    """The part of Airflow's asset state store that the trigger uses."""

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = value


def trigger(folder: Path, state: State) -> CorpusTrigger:
    made = CorpusTrigger([str(folder)], every_s=0.05)
    made.asset_state_store = state  # type: ignore[assignment]
    return made


async def fires(made: CorpusTrigger, within_s: float = 0.5) -> Any:
    """Payload of the next event; None if there is none within the time."""
    try:
        return (await asyncio.wait_for(anext(made.run()), within_s)).payload
    except TimeoutError:
        return None


@pytest.mark.parametrize("change", ["added", "changed", "removed"])
def test_it_fires_once_when_files_changed(tmp_path: Path, change: str) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    state = State()
    assert asyncio.run(fires(trigger(tmp_path, state))) is None, "the first listing is what others are compared with"
    if change == "removed":
        (tmp_path / "b").unlink()
    else:
        (tmp_path / ("c" if change == "added" else "a")).write_text("other")
    files = {"added": 3, "changed": 2, "removed": 1}[change]

    async def again() -> list[Any]:
        events = trigger(tmp_path, state).run()
        return [(await anext(events)).payload, await after(events)]

    async def after(events: Any) -> Any:
        try:
            return await asyncio.wait_for(anext(events), 0.4)
        except TimeoutError:
            return None

    # Another trigger with the same state, as after a restart of the triggerer.
    assert asyncio.run(again()) == [{"folders": [str(tmp_path)], "files": files}, None]
    assert asyncio.run(fires(trigger(tmp_path, state))) is None


def test_it_waits_until_an_upload_is_complete(tmp_path: Path) -> None:
    state = State()
    asyncio.run(fires(trigger(tmp_path, state)))

    async def uploading() -> tuple[int, int]:
        async def upload() -> None:
            for number in range(12):
                (tmp_path / f"{number}").write_text("x")
                await asyncio.sleep(0.03)

        writing = asyncio.create_task(upload())
        event = await anext(trigger(tmp_path, state).run())
        return event.payload["files"], int(writing.done())

    assert asyncio.run(uploading()) == (12, 1)


def test_a_store_that_does_not_answer_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retro_ops.errors import TransientError

    state, listing, calls = State(listing="before"), watching.listing, []

    def failing(folders: Any) -> Any:
        calls.append(folders)
        if len(calls) == 2:
            raise TransientError("no answer")
        return listing(folders)

    monkeypatch.setattr(watching, "listing", failing)
    assert asyncio.run(fires(trigger(tmp_path, state), 2)) == {"folders": [str(tmp_path)], "files": 0}
    assert len(calls) == 4, "two equal listings without an error between them"


def test_the_trigger_is_restored_from_what_airflow_stores() -> None:
    made = CorpusTrigger(["s3://b/corpus"], 20.0, "store")
    path, arguments = made.serialize()
    assert path == f"{CorpusTrigger.__module__}.{CorpusTrigger.__qualname__}"
    restored = CorpusTrigger(**BaseSerialization.deserialize(BaseSerialization.serialize(arguments)))
    assert restored.serialize() == made.serialize()


def test_the_schedule_is_by_time_by_files_or_both() -> None:
    def of(**more: str) -> Any:
        return watching.schedule(settings.load({**PLACE, **more}))

    watch = {"RETRO_REFRESH_WATCH": "s3://b/corpus/,/mnt/more"}
    assert of() is None
    assert isinstance(of(RETRO_REFRESH_SCHEDULE="0 3 * * *"), CronDataIntervalTimetable)
    (asset,) = of(**watch)
    assert (asset.name, asset.uri) == ("corpus of demo", "s3://b/corpus")
    assert asset.watchers[0].trigger.folders == ("s3://b/corpus", "/mnt/more")
    assert isinstance(of(**watch, RETRO_REFRESH_SCHEDULE="0 3 * * *"), AssetOrTimeSchedule)


@pytest.mark.parametrize("folders", ["corpus", "s3://b/{date}/x", "/mnt/*.jsonl"])
def test_only_folders_are_watched(folders: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a folder"):
        watching.schedule(settings.load({**PLACE, "RETRO_REFRESH_WATCH": folders}))


@pytest.mark.parametrize("folder", ["hf://datasets/owner/name", "https://example.org/corpus"])
def test_what_has_no_times_cannot_be_watched(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="no times to compare"):
        watching.schedule(settings.load({**PLACE, "RETRO_REFRESH_WATCH": folder}))


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_corpus_is_listed_at_most_once_a_second(seconds: str) -> None:
    with pytest.raises(ConfigurationError, match="RETRO_REFRESH_WATCH_SECONDS"):
        settings.load({**PLACE, "RETRO_REFRESH_WATCH_SECONDS": seconds})


def test_files_in_linked_folders_are_watched_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jsonl").write_text("{}")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/2026").symlink_to(tmp_path / "elsewhere")
    corpus = str(tmp_path / "corpus")
    assert list(watching.listing([corpus])) == store.at(corpus).list(corpus, follow_links=True)
    assert list(watching.listing([corpus])) == [f"{corpus}/2026/a.jsonl"]


def test_new_keys_of_a_connection_reach_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")
    used = []
    for key in ("old", "new", "new"):
        text = json.dumps({"conn_type": "aws", "login": key, "password": "x", "extra": {"region_name": "r"}})
        monkeypatch.setenv("AIRFLOW_CONN_ROTATED", text)
        object_store.use_connection("rotated")
        used.append(s3_client.client())
    s3_client.client.cache_clear()
    assert used[0] is not used[1] is used[2]
