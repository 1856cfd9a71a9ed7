"""The shell blocks of README.md and docs/: each runs here as it is written, or says on the line before why not."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nightly import Nights
from samples import write_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
REASON = re.compile(r"<!-- not run: (.+) -->")
LANGUAGES = {"", "sh", "python", "toml", "yaml", "mermaid"}
"""``sh`` and ``python`` are what a reader may paste; a block without a language is output, a file tree or the like."""

SUBSTITUTES = {"IVF16,PQ32": "IVF4,PQ32x4"}
"""An index for as few chunks as there are here."""

COMMAND = """#!{python}
# retro-ops with models that are on this machine, where the documented command takes those of the hub.
import sys

from retro_ops.cli import main

MODELS = {{
    "build": ["--tokenizer", {model!r}, "--model", {model!r}],
    "tokenize-and-chunk": ["--tokenizer", {model!r}],
    "embed-chunks": ["--model", {model!r}],
    "plan": ["--tokenizer", {model!r}, "--model", {model!r}],
}}
arguments = sys.argv[1:]
if "--plan" not in arguments:
    arguments += MODELS.get(arguments[0], [])
sys.exit(main(arguments))
"""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        why_not = REASON.fullmatch(found["before"])
        yield Block(page, line, found["language"], found["text"], why_not[1] if why_not else None)


def commands(page: Path) -> str:
    """The blocks of a page that can run, in order, as one script: a block may use variables of earlier ones.

    Those in Python run at the end, as one program.
    """
    of = {
        language: "\n".join(block.text for block in blocks(page) if block.language == language and not block.why_not)
        for language in ("sh", "python")
    }
    script = of["sh"] + (f"\npython -W error - <<'END'\n{of['python']}END\n" if of["python"] else "")
    for written, here in SUBSTITUTES.items():
        script = script.replace(written, here)
    return script


RUNNABLE = [page for page in PAGES if commands(page)]


@dataclass(frozen=True)
class Place:
    """Where commands run: a folder, and the variables that the pages speak of."""

    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_model: str) -> Place:
    """One for all pages, as a reader has one machine: a corpus, and a dataset of two versions with a new file since.

    In the folder lie ``data.jsonl``, and ``recipe.yaml`` as docs/recipes.md has it, with its files.
    """
    folder = tmp_path_factory.mktemp("place")
    nights = Nights(folder / "corpus", str(folder / "root"), [text[:600] for text in texts[3:]], small_model)
    for name in ("train/00_news", "val/val_news"):
        nights.put(name)
    nights.first()
    nights.put("train/01_news")
    second = nights.refresh()
    nights.put("train/02_news")
    write_corpus(folder / "data.jsonl", texts[:25])
    _write_recipe(folder)
    command = folder / "bin/retro-ops"
    command.parent.mkdir()
    command.write_text(COMMAND.format(python=sys.executable, model=small_model))
    command.chmod(0o755)
    environment = {
        "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RETRO_DATA_CACHE": str(folder / "cache"),
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/reader",
        "ROOT": nights.root,
        "DATASET": "d",
        "CORPUS": f"{nights.folder}/train",
        "VALIDATION": f"{nights.folder}/val",
        "PLAN": second.plan_uri,
    }
    return Place(folder, {**os.environ, **environment})


def _write_recipe(folder: Path) -> None:
    import pyarrow
    import zstandard
    from pyarrow import parquet

    (recipe, *_) = (block.text for block in blocks(REPOSITORY / "docs/recipes.md") if block.language == "yaml")
    (folder / "recipe.yaml").write_text(recipe)
    kinds = ("News articles", "Source code", "something else")
    for number in range(4):
        documents = [
            {"text": f"Document {i} of file {number}.", "meta": {"kind": kinds[i % 3], "id": f"{number}/{i}"}}
            for i in range(150)
        ]
        plain = write_corpus(folder / f"dump/{number:02}.jsonl", documents)
        with zstandard.open(f"{plain}.zst", "wb") as packed:
            packed.write(plain.read_bytes())
        plain.unlink()
    rows = io.BytesIO()
    parquet.write_table(pyarrow.table({"body": ["One.", "Two.", "Three."]}), rows)
    (folder / "table.parquet").write_bytes(rows.getvalue())


def marked(page: Path) -> Any:
    """That page runs every stage as a process of its own; other tests call the same commands in one process."""
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem == "by-hand" else [])


@pytest.mark.parametrize("page", [marked(page) for page in RUNNABLE])
def test_the_commands_of_a_page_run(page: Path, place: Place) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-x", "-c", commands(page)],
        cwd=place.folder,
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_pages_have_commands_in_blocks_that_are_checked() -> None:
    unknown = [block.place for page in PAGES for block in blocks(page) if block.language not in LANGUAGES]
    indented = [
        f"{page.name}: {line.strip()}"
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r" {4,}(retro-ops|make|airflow|docker) ", line)
    ]
    assert (unknown, indented) == ([], [])


def test_the_pages_with_sequences_of_commands_are_run() -> None:
    assert {"by-hand", "quality", "reading", "recipes", "refresh", "runbook"} <= {page.stem for page in RUNNABLE}
