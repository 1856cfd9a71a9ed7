"""Files of a corpus line by line: tables like JSON lines, from any line on."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from retro_ops.corpus import finding, source_lines
from retro_ops.errors import BadInputError

LIMIT = 2**20


def write_table(path: Path, column: str, texts: list[str | None], rows_a_group: int = 4) -> str:
    table = pa.table({"n": range(len(texts)), column: pa.array(texts, pa.string())})
    parquet.write_table(table, path, row_group_size=rows_a_group)
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """A table of 10 rows in groups of 4, JSON lines, an empty table, and a table of one row."""
    lines = tmp_path / "b.jsonl"
    lines.write_text("".join(json.dumps({"body": f"line {n}"}) + "\n" for n in range(3)))
    return [
        write_table(tmp_path / "a.parquet", "body", [f"row {n}" for n in range(10)]),
        str(lines),
        write_table(tmp_path / "c.parquet", "body", []),
        write_table(tmp_path / "d.parquet", "body", ["last"]),
    ]


def test_reading_starts_at_any_line(sources: list[str]) -> None:
    everything = list(source_lines.lines(sources, LIMIT, "body"))
    assert len(everything) == 14
    assert [json.loads(line or b"")["body"] for _, _, line in everything] == [
        *(f"row {n}" for n in range(10)),
        *(f"line {n}" for n in range(3)),
        "last",
    ]
    assert [number for _, number, _ in everything] == [*range(1, 11), 1, 2, 3, 1]
    for first in range(16):
        assert list(source_lines.lines(sources, LIMIT, "body", first)) == everything[first:], first


def test_a_sample_ends_where_it_has_enough(sources: list[str]) -> None:
    documents, share = source_lines.sample(sources[0], LIMIT, "body", 48)
    assert [document.text for document in documents] == ["row 0", "row 1", "row 2"]
    assert share == 0.3
    everything, share = source_lines.sample(sources[0], LIMIT, "body", 2**20)
    assert (len(everything), share) == (10, 1.0)
    assert source_lines.sample(sources[2], LIMIT, "body", 1) == ([], 1.0)


def test_a_column_that_does_not_exist_is_named_with_the_others(sources: list[str]) -> None:
    with pytest.raises(BadInputError, match=r"a.parquet has no column 'text'; its columns are n, body\n.*--text-field"):
        list(source_lines.lines(sources, LIMIT, "text"))
    with pytest.raises(BadInputError, match=r"column 'n' of .* has type int64"):
        list(source_lines.lines(sources, LIMIT, "n"))


def test_tables_are_files_of_a_corpus(sources: list[str], tmp_path: Path) -> None:
    assert finding.find(str(tmp_path)) == finding.find(f"{tmp_path}/*") == sorted(sources)
