"""Reads the rows of a Parquet table as lines of JSON, of which one column holds the text of a document."""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Any

from retro_ops.corpus import json_lines
from retro_ops.corpus.json_lines import SAMPLE_REQUEST_BYTES
from retro_ops.corpus.line_streams import SourceLine
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.storage import store
from retro_ops.storage.range_file import EnoughError, RangeFile

ROWS = 512
"""Rows converted to lines at a time."""

COPY_BYTES = 2**20

NAME_THE_COLUMN = (
    f"name the column of the text with {PARAMETERS['text_field'].where}, or, if files have different columns, "
    "use a recipe and name it with `text` of each source"
)


def lines(
    uri: str, max_line_bytes: int, text_key: str, first: int = 0, remedy: str = NAME_THE_COLUMN
) -> Iterator[SourceLine]:
    """Stream the rows, skipping the ``first`` ones. The number of a line is that of its row, from 1.

    ``text_key``: column with the text of a document. Raises BadInputError with ``remedy`` if there is no such
    column of text.
    """
    with _opened(uri, _seekable(uri)) as table:
        _check_text_column(uri, table.schema_arrow, text_key, remedy)
        groups, skipped = _groups_after(table.metadata, first)
        number = skipped
        for batch in table.iter_batches(batch_size=ROWS, row_groups=groups):
            for row in _rows(batch, text_key):
                number += 1
                if number > first:
                    yield uri, number, _line(row, max_line_bytes)


def _line(row: dict[str, Any], max_line_bytes: int) -> bytes | None:
    # Bytes of a text that are no UTF-8 stay, so that its record is bad.
    line = json_lines.strict_json(row, default=_plain).encode("utf-8", "surrogateescape")
    return line if len(line) <= max_line_bytes else None


def sample(
    uri: str, max_line_bytes: int, text_key: str, wanted_bytes: int, most_bytes: int
) -> tuple[list[SourceLine], float]:
    """The first rows as lines that hold only the text, and the share of all rows that these are.

    Stops after ``wanted_bytes`` of lines, and before more than ``most_bytes`` of the file would be read.
    """
    found: list[SourceLine] = []
    taken = rows = 0
    with (
        contextlib.suppress(EnoughError),
        _opened(
            uri,
            io.BufferedReader(RangeFile(uri, most_bytes), SAMPLE_REQUEST_BYTES),
            # So that a column is read page by page, not the whole of a row group.
            buffer_size=SAMPLE_REQUEST_BYTES,
            pre_buffer=False,
        ) as table,
    ):
        _check_text_column(uri, table.schema_arrow, text_key, NAME_THE_COLUMN)
        rows = table.metadata.num_rows
        for batch in table.iter_batches(batch_size=ROWS, columns=[text_key]):
            for row in _rows(batch, text_key):
                line = _line(row, max_line_bytes)
                found.append((uri, len(found) + 1, line))
                taken += len(line or b"")
                if taken >= wanted_bytes:
                    return found, len(found) / rows
        return found, 1.0
    return found, len(found) / max(1, rows)


def count(uri: str) -> int:
    """Number of rows, which the end of the file names."""
    with _opened(uri, _seekable(uri)) as table:
        return int(table.metadata.num_rows)


def _groups_after(metadata: Any, first: int) -> tuple[list[int], int]:
    """Numbers of the row groups that hold rows after the ``first`` ones, and the number of rows in the others."""
    skipped = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if skipped + rows > first:
            return list(range(group, metadata.num_row_groups)), skipped
        skipped += rows
    return [], skipped


@contextlib.contextmanager
def _opened(uri: str, file: AbstractContextManager[IO[bytes]], **options: Any) -> Iterator[Any]:
    """The table in ``file`` as pyarrow's ParquetFile with ``options``. Its errors become BadInputError."""
    try:  # Before the file is opened, which may copy it.
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigurationError(f"reading {uri} needs pyarrow", "pip install retro-ops[parquet]") from error
    with file as stream:
        try:
            yield parquet.ParquetFile(stream, **options)
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"{uri} cannot be read as a Parquet file: {error}", "the file is damaged: download it again"
            ) from error


def _check_text_column(uri: str, schema: Any, text_key: str, remedy: str) -> None:
    if text_key not in schema.names:
        raise BadInputError(f"{uri} has no column {text_key!r}; its columns are {', '.join(schema.names)}", remedy)
    kind = schema.field(text_key).type
    if not _is_text(kind.value_type if str(kind).startswith("dictionary<") else kind):
        raise BadInputError(f"column {text_key!r} of {uri} has type {kind}, which is no text", remedy)


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _rows(batch: Any, text_key: str) -> Iterator[dict[str, Any]]:
    """The rows of ``batch``, with bytes as text."""
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if str(column.type) in ("string", "large_string"):  # Of which pyarrow checks no byte.
            column = column.cast("binary" if str(column.type) == "string" else "large_binary")
        errors = "surrogateescape" if name == text_key else "backslashreplace"
        columns.append(
            [value.decode("utf-8", errors) if isinstance(value, bytes) else value for value in column.to_pylist()]
        )
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _plain(value: Any) -> str:
    """A value that JSON has no type for, as text: a date, a decimal number, nested bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _seekable(uri: str) -> Iterator[IO[bytes]]:
    """The file, read by range. One with a checksum is copied first, since only the whole can be compared with it."""
    if not uri.startswith("https://"):
        with io.BufferedReader(RangeFile(uri), COPY_BYTES) as stream:
            yield stream
        return
    with tempfile.TemporaryFile(prefix="retro-ops-") as copy, store.open_stream(uri) as source:
        shutil.copyfileobj(source, copy, COPY_BYTES)
        yield copy
