"""Reads the files of a corpus line by line: JSON lines, or the rows of Parquet tables."""

from collections.abc import Iterator, Sequence

from retro_ops import uris
from retro_ops.corpus import json_lines, line_streams, parquet_rows
from retro_ops.corpus.json_lines import Document
from retro_ops.corpus.line_streams import SourceLine

PARQUET = ".parquet"
SUFFIXES = (*line_streams.SUFFIXES, PARQUET)


def lines(sources: Sequence[str], max_line_bytes: int, text_key: str, first: int = 0) -> Iterator[SourceLine]:
    """Stream the lines of all sources in order, skipping the ``first`` ones.

    A line longer than ``max_line_bytes`` is None. ``text_key``: key, or column, of the text of a document.
    """
    passed = 0
    for source in sources:
        if _is_table(source):
            rows = parquet_rows.count(source) if passed < first else 0
            if passed + rows > first or passed == first:
                yield from parquet_rows.lines(source, max_line_bytes, text_key, first - passed)
            passed = min(first, passed + rows)
            continue
        for line in line_streams.lines([source], max_line_bytes):
            if passed < first:
                passed += 1
            else:
                yield line


def sample(source: str, max_line_bytes: int, text_key: str, wanted_bytes: int) -> tuple[list[Document], float]:
    """Documents from the start of a file, up to ``wanted_bytes`` of lines, and the share of the file that was read."""
    if not _is_table(source):
        return json_lines.sample(source, max_line_bytes, text_key, wanted_bytes)
    documents: list[Document] = []
    taken = number = 0
    for _, number, line in parquet_rows.lines(source, max_line_bytes, text_key):
        record = json_lines.parse(line, source, number, max_line_bytes, text_key)
        if isinstance(record, Document):
            documents.append(record)
        taken += len(line or b"")
        if taken >= wanted_bytes:
            break
    return documents, number / max(1, parquet_rows.count(source))


def _is_table(source: str) -> bool:
    return uris.file_name(source).endswith(PARQUET)
