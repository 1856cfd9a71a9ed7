"""Reads the files of a corpus line by line: JSON lines, or the rows of Parquet tables."""

from collections.abc import Iterator, Sequence

from retro_ops import uris
from retro_ops.corpus import json_lines, line_streams, parquet_rows
from retro_ops.corpus.json_lines import Document
from retro_ops.corpus.line_streams import SourceLine

PARQUET = ".parquet"
SUFFIXES = (*line_streams.SUFFIXES, PARQUET)

MOST_SAMPLED_BYTES = 32 * 2**20
"""Bytes of a file that are read for a sample, however long its documents are."""


def lines(
    sources: Sequence[str],
    max_line_bytes: int,
    text_key: str,
    first: int = 0,
    remedy: str = parquet_rows.NAME_THE_COLUMN,
) -> Iterator[SourceLine]:
    """Stream the lines of all sources in order, skipping the ``first`` ones.

    A line longer than ``max_line_bytes`` is None. ``text_key``: key, or column, of the text of a document.
    ``remedy``: what the error for a table without that column says to do.
    """
    passed = 0
    for source in sources:
        if _is_table(source):
            rows = parquet_rows.count(source) if passed < first else 0
            if passed + rows > first or passed == first:
                yield from parquet_rows.lines(source, max_line_bytes, text_key, first - passed, remedy)
            passed = min(first, passed + rows)
            continue
        for line in line_streams.lines([source], max_line_bytes):
            if passed < first:
                passed += 1
            else:
                yield line


def sample(
    source: str, max_line_bytes: int, text_key: str, wanted_bytes: int, most_bytes: int = MOST_SAMPLED_BYTES
) -> tuple[list[Document], float]:
    """Documents from the start of a file, up to ``wanted_bytes`` of lines, and the share of the file that was read.

    Stops before more than ``most_bytes`` of the file would be read. The share is 0 if no document ends before that.
    """
    if not _is_table(source):
        documents, share = json_lines.sample(source, max_line_bytes, text_key, wanted_bytes, most_bytes)
    else:
        found, share = parquet_rows.sample(source, max_line_bytes, text_key, wanted_bytes, most_bytes)
        records = (json_lines.parse(line, source, number, max_line_bytes, text_key) for _, number, line in found)
        documents = [record for record in records if isinstance(record, Document)]
    return documents, share if documents or share == 1 else 0.0


def _is_table(source: str) -> bool:
    return uris.file_name(source).endswith(PARQUET)
