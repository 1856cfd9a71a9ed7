"""Writes a small corpus of real text from the Python installation: two categories with 3 shards each, and validation.

``docs``: the language reference (pydoc topics) and docstrings of the standard library. ``code``: its source files,
which are parsed but not imported. Nothing is downloaded. The same Python version gives the same bytes.
"""

import argparse
import ast
import gzip
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

SHARDS = 3
VALIDATION_EVERY = 12
CATEGORY_BYTES = {"docs": 780_000, "code": 700_000}
"""Bytes of text per category, which give about 6,000 chunks of 64 word pieces in total."""

Record = dict[str, Any]


def documents(category: str) -> Iterator[Record]:
    """Yield records with ``id``, ``text`` and ``meta`` until the category is full."""
    left = CATEGORY_BYTES[category]
    for record in docs_records() if category == "docs" else code_records():
        left -= len(record["text"].encode())
        if left < 0:
            return
        yield record


def _modules() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        name = path.relative_to(library).as_posix()
        if not name.startswith(("test/", "idlelib/", "lib2to3/", "turtledemo/", "site-packages/", "pydoc_data/", "_")):
            yield name, path.read_text(encoding="utf-8", errors="replace")


def docs_records() -> Iterator[Record]:
    for topic, text in sorted(topics.items()):
        yield {"id": f"topic/{topic}", "text": text, "meta": {"kind": "language reference"}}
    for name, source in _modules():
        nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
        text = "\n\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))
        if len(text) > 500:
            yield {"id": f"docstrings/{name}", "text": text, "meta": {"kind": "docstrings"}}


def code_records() -> Iterator[Record]:
    for name, source in _modules():
        if 2_000 < len(source) < 40_000:
            yield {"id": f"source/{name}", "text": source, "meta": {"kind": "source"}}


def write(folder: Path) -> list[Path]:
    """Write ``train/00_docs.jsonl`` … and ``val/val_docs.jsonl`` … and return their paths."""
    shards: dict[Path, list[str]] = {}
    for category in CATEGORY_BYTES:
        for number, record in enumerate(documents(category)):
            path = folder / f"train/{number % SHARDS:02}_{category}.jsonl"
            if number % VALIDATION_EVERY == VALIDATION_EVERY - 1:
                path = folder / f"val/val_{category}.jsonl"
            shards.setdefault(path, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    written = []
    for path, lines in sorted(shards.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(lines).encode()
        if path.name.startswith("02_"):  # One compressed shard per category, as in real corpora.
            path = path.with_name(path.name + ".gz")
            data = gzip.compress(data, mtime=0)
        path.write_bytes(data)
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write to")
    for path in write(parser.parse_args().folder):
        print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
