"""Messages of a stage: their format, and a sign of life while nothing else is logged."""

import json
import re
import time
from collections.abc import Iterator

import pytest

from retro_ops import progress


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = list(progress.logger.handlers)
    yield
    progress.logger.handlers = before


@pytest.fixture
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.2)


def test_messages_are_json_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure_logging()
    progress.say("hello", event="greeting")
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["level"], line["event"]) == ("hello", "info", "greeting")


def test_messages_are_text_where_it_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure_logging("text")
    progress.say("hello", event="greeting")
    assert capsys.readouterr().err == "hello\n"


@pytest.mark.usefixtures("short_interval")
def test_a_silent_stage_gives_a_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure_logging("text")
    with progress.sign_of_life("describe"):
        time.sleep(0.7)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(re.fullmatch(r"describe: still working \(\d+ s\)", line) for line in lines)


@pytest.mark.usefixtures("short_interval")
def test_a_stage_that_logs_needs_none(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure_logging("text")
    with progress.sign_of_life("describe"):
        for _ in range(12):
            progress.say("a message")
            time.sleep(0.05)
    assert "still working" not in capsys.readouterr().err
