"""Write the parts of the documentation that follow from the code: the tables of docs/parameters.md.

python docs/generate.py            # write them
python docs/generate.py --check    # exit code 1 if they are stale
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from retro_ops.plan.parameters import PARAMETERS, Parameter

DOCS = Path(__file__).resolve().parent


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


TABLES = {"content": content_table, "other": other_table}


def _row(parameter: Parameter) -> list[str]:
    default = parameter.unset if parameter.default is None else f"`{parameter.default}`"
    return [f"`{parameter.name}`" + ("" if parameter.title else " \\*"), parameter.meaning, default]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def generated(text: str) -> str:
    """``text`` with each table between its markers written again."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name}: written by docs/generate.py -->", f"<!-- end {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"docs/parameters.md lacks the markers of {name!r}"
        block = "\n".join([begin, *table(), end])
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, block=block: block, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    arguments = parser.parse_args()
    page = DOCS / "parameters.md"
    before = page.read_text()
    after = generated(before)
    if arguments.check:
        if after != before:
            print(f"{page} is stale: run `make docs`")
        return int(after != before)
    page.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
