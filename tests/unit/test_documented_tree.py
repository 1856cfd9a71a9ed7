"""The file tree of docs/architecture.md against the real folders."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SUFFIXES = (".py", ".j2", ".yaml", ".toml")
NAMED_BY_THEIR_FOLDER = ("templates", "static")
ROOTS = ("retro_ops", "plugins/retro_airflow", "reader/retro_data", "dags")


def tree() -> list[str]:
    """Lines of the fenced block that begins with ``retro_ops/``."""
    lines = (REPOSITORY / "docs/architecture.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("retro_ops/ "))
    return lines[start : lines.index("```", start)]


def documented() -> Iterator[str]:
    """Every file that the tree names, relative to the repository: the first word of a line, below its folders."""
    folders: list[tuple[int, str]] = []
    for line in tree():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while folders and folders[-1][0] >= indent:
            folders.pop()
        if name.endswith("/"):
            folders.append((indent, name))
        else:
            yield "".join(folder for _, folder in folders) + name


def real(root: str) -> Iterator[str]:
    for path in (REPOSITORY / root).rglob("*"):
        is_named = path.suffix in SUFFIXES and path.name != "__init__.py"
        if is_named and path.parent.name not in NAMED_BY_THEIR_FOLDER:
            yield path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("root", ROOTS)
def test_the_tree_names_every_file_exactly_once(root: str) -> None:
    named, there = Counter(path for path in documented() if path.startswith(f"{root}/")), Counter(real(root))
    missing, unknown = sorted(there - named), sorted(named - there)
    assert (missing, unknown) == ([], [])


def test_the_tree_names_files_of_these_folders_only() -> None:
    assert [path for path in documented() if not path.startswith(tuple(f"{root}/" for root in ROOTS))] == []


def test_each_file_has_a_comment() -> None:
    assert [line for line in tree() if line.split()[0].endswith(SUFFIXES) and len(line.split()) < 2] == []
