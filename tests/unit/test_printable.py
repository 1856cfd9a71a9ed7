"""What reaches a terminal or a log: no control characters, no passwords."""

import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops import progress
from retro_ops.errors import BadInputError, printable


@given(st.text(st.characters(categories=None)))
def test_nothing_that_is_printed_controls_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(character) not in ("Cc", "Cs") for character in shown if character not in "\n\t")
    assert printable(shown) == shown
    assert str(BadInputError(text, text)) == printable(str(BadInputError(shown, shown)))


@pytest.mark.parametrize("text", ["plain", "Ünïcödé 東京 🎉", "two\nlines\tand a tab", "s3://bucket/key", "a@b.org"])
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb", r"a\rb"),
        ("evil\u202etxt.exe", r"evil\u202etxt.exe"),
        ("http://user:secret@host:9000/x", "http://user:***@host:9000/x"),
        ("to 'https://u:p@h' or http://:token@h", "to 'https://u:***@h' or http://:***@h"),
    ],
)
def test_control_characters_and_passwords(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_log_and_results_are_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.logger, "handlers", [])
    progress.configure_logging()
    progress.say("50% \x1b[2J http://u:p@h")
    progress.show("\x1b[2J")
    captured = capsys.readouterr()
    assert json.loads(captured.err)["message"] == "50% \\x1b[2J http://u:***@h"
    assert captured.out == "\\x1b[2J\n"
    logging.getLogger("retro_ops").handlers = []
