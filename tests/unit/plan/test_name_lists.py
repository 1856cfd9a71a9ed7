"""Names with commas between, and that one function alone takes such lists apart."""

from pathlib import Path

import pytest

from retro_ops.plan.name_lists import join_names, split_names

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "names"),
    [("a", ["a"]), ("a,b", ["a", "b"]), ("00_x.y-z,b,", ["00_x.y-z", "b"]), ("a,,b", ["a", "b"]), ("", []), (",", [])],
)
def test_a_list_is_taken_apart(text: str, names: list[str]) -> None:
    assert split_names(text) == names
    assert split_names(join_names(names)) == names


def test_no_other_code_takes_lists_apart() -> None:
    """Copies of it differed: an empty name was an error in one place and nothing in another."""
    files = [path for folder in ("retro_ops", "plugins", "dags") for path in (REPOSITORY / folder).rglob("*.py")]
    found = [path.name for path in files if any(of in path.read_text() for of in ('.split(",")', ".split(',')"))]
    assert found == ["name_lists.py"]
