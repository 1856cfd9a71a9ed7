"""Write the parts of the documentation that follow from the code: tables of parameters, the picture of imports.

python docs/generate.py            # write them
python docs/generate.py --check    # exit code 1 if they are stale
"""

import argparse
import ast
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from retro_ops.plan.parameters import PARAMETERS, Parameter

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
PACKAGES = ("retro_ops/**/*.py", "plugins/retro_airflow/**/*.py", "reader/retro_data/**/*.py")


def content_table() -> list[str]:
    """Parameters that are in a digest, with the first stage that each changes."""
    rows = [[*_row(parameter), f"`{parameter.decides}`"] for parameter in PARAMETERS.values() if parameter.decides]
    return _table(["key", "meaning", "default", "from stage"], rows)


def other_table() -> list[str]:
    """Parameters that are in no digest, with the stages that read them."""
    return _table(
        ["key", "meaning", "default", "read by"],
        (
            [*_row(parameter), ", ".join(f"`{stage}`" for stage in parameter.read_by)]
            for parameter in PARAMETERS.values()
            if not parameter.decides
        ),
    )


def imports_picture() -> list[str]:
    """Mermaid graph of the packages: an arrow for each import that no longer chain of arrows stands for already."""
    imports: dict[str, set[str]] = {}
    for path in sorted(path for pattern in PACKAGES for path in REPOSITORY.glob(pattern)):
        names = path.relative_to(REPOSITORY).with_suffix("").parts
        importer = _package(list(names[1:] if names[0] in ("plugins", "reader") else names))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("retro_ops"):
                for alias in node.names:
                    imports.setdefault(importer, set()).add(_package([*node.module.split("."), alias.name]))
    for importer, imported in imports.items():
        imported.discard(importer)
    arrows = [
        f"  {importer} --> {package}"
        for importer, imported in sorted(imports.items())
        for package in sorted(imported)
        if not any(package in _reached(between, imports) for between in imported - {package})
    ]
    return ["```mermaid", "flowchart TD", *arrows, "```"]


def _package(names: list[str]) -> str:
    """``["retro_ops", "plan", "paths"]`` -> ``plan``; single modules other than the command line are the ground."""
    if names[0] != "retro_ops":
        return names[0]
    if len(names) > 1 and (REPOSITORY / "retro_ops" / names[1]).is_dir():
        return names[1]
    return "cli" if names[1:2] == ["cli"] else "ground"


def _reached(package: str, imports: Mapping[str, set[str]]) -> set[str]:
    """Packages that ``package`` imports, directly or through others."""
    reached: set[str] = set()
    waiting = [package]
    while waiting:
        new = imports.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


PARTS = {
    "parameters.md": {"content": content_table, "other": other_table},
    "architecture.md": {"imports": imports_picture},
}
"""Generated parts, by page and by the name in their markers."""


def _row(parameter: Parameter) -> list[str]:
    default = parameter.unset if parameter.default is None else f"`{parameter.default}`"
    return [f"`{parameter.name}`" + ("" if parameter.title else " \\*"), parameter.meaning, default]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def generated(page: str, text: str) -> str:
    """``text`` of ``page`` with each generated part written again."""
    for name, part in PARTS[page].items():
        begin, end = f"<!-- begin {name}: written by docs/generate.py -->", f"<!-- end {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"docs/{page} lacks the markers of {name!r}"
        before, after = text.split(begin)[0], text.split(end)[1]
        text = "\n".join([before + begin, *part(), end + after])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    arguments = parser.parse_args()
    stale = []
    for name in PARTS:
        page = DOCS / name
        current = page.read_text()
        wanted = generated(name, current)
        if wanted != current:
            stale.append(name)
            if not arguments.check:
                page.write_text(wanted)
    if arguments.check and stale:
        print(f"stale: {', '.join(stale)}; run `make docs`")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
