"""Reads a source file line by line: JSON lines, an archive of such files, or a Parquet table."""

import contextlib
import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from tarfile import EOFHeaderError as EndOfArchiveError  # type: ignore[attr-defined]
from tarfile import HeaderError, TarError
from typing import Any, Self

import zstandard
from wcmatch import glob

from retro_ops.corpus import json_lines
from retro_ops.corpus.json_lines import SourceLine
from retro_ops.corpus.recipes.model import format_of
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.progress import say
from retro_ops.storage import store

SHOWN_MEMBERS = 10

HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
MOST_HEADER_BYTES = 2**20
"""Limit on a header that holds a long name or other facts about the next member."""

SPARSE = "it has a sparse member, whose size is without limit; pack it again without --sparse"
END_BYTES = 2**16

PARQUET_ROWS = 512
"""Rows converted to lines at a time."""


def lines(uri: str, members: str | None, max_line_bytes: int, text_key: str) -> Iterator[SourceLine]:
    """Stream the lines of a file, which is opened and decompressed once.

    The source of a line is ``uri``, or ``archive.tar.gz/member``. ``members``: pattern of the files to read if ``uri``
    is an archive. ``text_key``: column of a table that holds the text of a document.
    """
    kind = format_of(uri)
    if kind == "tar":
        yield from _archive(uri, members or "**", max_line_bytes)
    elif kind == "parquet":
        yield from _parquet(uri, max_line_bytes, text_key)
    else:
        yield from json_lines.lines([uri], max_line_bytes)


def _archive(uri: str, members: str, max_line_bytes: int) -> Iterator[SourceLine]:
    passed = 0
    shown: list[str] = []
    matched = False
    name = uri.removesuffix(".tgz") + ".tar.gz" if uri.endswith(".tgz") else uri
    pattern = glob.compile(members.removeprefix("./"), flags=glob.GLOBSTAR | glob.BRACE)
    with (
        _damage(uri),
        store.open_stream(uri) as raw,
        json_lines.decompressed(raw, name) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive,
    ):
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # Otherwise the list grows with each member.
            path = member.name.removeprefix("./")
            if not member.isfile() or not pattern.match(path):
                passed += not member.isdir()
                shown = [*shown, path][:SHOWN_MEMBERS]
                continue
            matched = True
            content = archive.extractfile(member)
            assert content
            where = f"{uri}/{path}"
            with json_lines.decompressed(content, path) as text:
                for number, line in enumerate(json_lines.lines_of(text, where, max_line_bytes), 1):
                    yield where, number, line
        _check_end(archive)
    if not matched:
        raise BadInputError(
            f"no member of {uri} matches {members!r}",
            f"correct 'members'; the archive holds {', '.join(shown) or 'no files'}",
        )
    if passed:
        say(f"{uri}: {passed:,} members are passed over: {', '.join(shown)}", event="passed_over", files=passed)


class _Member(tarfile.TarInfo):
    """A member whose header is whole and small. tarfile takes a damaged header for the end of the archive, and reads a
    header of any size into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in HEADER_TYPES and member.size > MOST_HEADER_BYTES):
            raise tarfile.ReadError(f"a header says that it has {member.size:,} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(SPARSE)
        return member

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            member = super().fromtarfile(tarfile)
        except EndOfArchiveError:
            raise
        except HeaderError as error:
            raise _cut_or_joined(str(error)) from error
        if member.issparse():
            raise TarError(SPARSE)
        return member


def _check_end(archive: tarfile.TarFile) -> None:
    """Read to the end, so that checksums of the compression are compared. Behind the last member are only zeros."""
    stream: Any = archive.fileobj
    while block := stream.read(END_BYTES):
        if block.count(0) != len(block):
            raise _cut_or_joined("more follows behind its end")


def _cut_or_joined(why: str) -> tarfile.TarError:
    return tarfile.ReadError(f"{why}; it is damaged, or several archives were joined")


@contextlib.contextmanager
def _damage(uri: str) -> Iterator[None]:
    """Turn errors of damaged archives into BadInputError."""
    try:
        yield
    except (
        *(tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError),
        *(ValueError, OverflowError, KeyError, IndexError),  # Of tarfile, for numbers that are none.
    ) as error:
        raise BadInputError(f"{uri} cannot be read: {error}", "the file is damaged: download it again") from error


def _parquet(uri: str, max_line_bytes: int, text_key: str) -> Iterator[SourceLine]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigurationError(f"reading {uri} needs pyarrow", "pip install retro-ops[parquet]") from error
    number = 0
    with io.BufferedReader(_Seekable(uri), 2**20) as stream:
        try:
            table = parquet.ParquetFile(stream)
            _check_text_column(uri, table.schema_arrow, text_key)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for row in _rows(batch, text_key):
                    number += 1
                    # Bytes of a text that are no UTF-8 stay, so that its record is bad.
                    line = json_lines.strict_json(row, default=_plain).encode("utf-8", "surrogateescape")
                    yield uri, number, line if len(line) <= max_line_bytes else None
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"{uri} cannot be read as a Parquet file: {error}", "the file is damaged: download it again"
            ) from error


def _check_text_column(uri: str, schema: Any, text_key: str) -> None:
    if text_key not in schema.names:
        raise BadInputError(
            f"{uri} has no column {text_key!r}", f"set 'text' in the recipe; its columns are {', '.join(schema.names)}"
        )
    kind = schema.field(text_key).type
    if not _is_text(kind.value_type if str(kind).startswith("dictionary<") else kind):
        raise BadInputError(
            f"column {text_key!r} of {uri} has type {kind}, which is no text", "set 'text' in the recipe to another one"
        )


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


class _Seekable(io.RawIOBase):
    """A stored object as a seekable file: each read requests its range."""

    def __init__(self, uri: str) -> None:
        self._uri, self._store = uri, store.at(uri)
        self._size, self._position = self._store.size(uri), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        buffer[:length] = self._store.read_range(self._uri, self._position, length)
        self._position += length
        return length
