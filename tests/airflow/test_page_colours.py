"""Contrast of the pages' colours, by WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for lines that show what can be used."""

import re

import pytest
from live_airflow import REPOSITORY

STATIC = REPOSITORY / "plugins/retro_airflow/pages/static"

TEXT = (
    4.5,
    [
        *[("text", on) for on in ("page", "panel", "mark")],
        *[("muted", on) for on in ("page", "panel", "line")],
        *[("link", on) for on in ("page", "panel")],
        ("page", "link"),  # The main button.
        *[(state, f"{state}-fill") for state in ("good", "bad", "busy")],
    ],
)
LINES = 3.0, [("edge", "page"), ("edge", "panel"), ("busy", "page"), ("busy", "panel"), ("link", "panel")]


def luminance(colour: str) -> float:
    digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


NAVIGATION = {"light": "dbe7f5", "chosen": "3d5a88", "dark": "18181b"}
"""What Airflow shows the icon on."""


@pytest.mark.parametrize("behind", NAVIGATION.values(), ids=NAVIGATION)
def test_the_icon_can_be_seen_on_airflows_navigation(behind: str) -> None:
    icon = (STATIC / "icon.svg").read_text()
    line, edge = (re.findall(r'stroke="#([0-9a-f]+)"', icon))[::-1]
    assert contrast(line, edge) >= 3
    assert max(contrast(line, behind), contrast(edge, behind)) >= 3


def schemes() -> list[dict[str, str]]:
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", (STATIC / "retro.css").read_text())
    return [dict(re.findall(r"--([a-z-]+): #([0-9a-f]+)", block)) for block in blocks]


def test_the_dark_colours_are_the_same_where_airflow_and_where_the_browser_chooses_them() -> None:
    light, dark, dark_of_browser = schemes()
    assert dark == dark_of_browser
    assert light.keys() == dark.keys()


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_lines_can_be_told_from_what_is_behind_them(scheme: int) -> None:
    colours = schemes()[scheme]
    for least, pairs in (TEXT, LINES):
        low = {pair: round(found, 2) for pair in pairs if (found := contrast(*map(colours.get, pair))) < least}  # type: ignore[arg-type]
        assert low == {}
