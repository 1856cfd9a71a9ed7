"""Reads a source file line by line: JSON lines, an archive of such files, or a Parquet table."""

import contextlib
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard
from wcmatch import glob

from retro_ops.corpus import json_lines
from retro_ops.corpus.json_lines import SourceLine
from retro_ops.corpus.recipes.model import format_of
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.storage import store

SHOWN_MEMBERS = 10
PARQUET_ROWS = 512
"""Rows converted to lines at a time."""


def lines(uri: str, members: str | None, max_line_bytes: int) -> Iterator[SourceLine]:
    """Stream the lines of a file, which is opened and decompressed once.

    The source of a line is ``uri``, or ``archive.tar.gz/member``. ``members``: pattern of the files to read if ``uri``
    is an archive.
    """
    kind = format_of(uri)
    if kind == "tar":
        yield from _archive(uri, members or "**", max_line_bytes)
    elif kind == "parquet":
        yield from _parquet(uri, max_line_bytes)
    else:
        yield from json_lines.lines([uri], max_line_bytes)


def _archive(uri: str, members: str, max_line_bytes: int) -> Iterator[SourceLine]:
    passed: list[str] = []
    matched = False
    name = uri.removesuffix(".tgz") + ".tar.gz" if uri.endswith(".tgz") else uri
    with (
        _damage(uri),
        store.open_stream(uri) as raw,
        json_lines.decompressed(raw, name) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # Otherwise the list grows with each member.
            if not member.isfile() or not glob.globmatch(member.name, members, flags=glob.GLOBSTAR | glob.BRACE):
                passed = [*passed, member.name][:SHOWN_MEMBERS]
                continue
            matched = True
            content = archive.extractfile(member)
            assert content
            where = f"{uri}/{member.name}"
            with json_lines.decompressed(content, member.name) as text:
                for number, line in enumerate(json_lines.lines_of(text, where, max_line_bytes), 1):
                    yield where, number, line
    if not matched:
        raise BadInputError(
            f"no member of {uri} matches {members!r}",
            f"correct 'members'; the archive holds {', '.join(passed) or 'no files'}",
        )


@contextlib.contextmanager
def _damage(uri: str) -> Iterator[None]:
    """Turn errors of damaged archives into BadInputError."""
    try:
        yield
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise BadInputError(f"{uri} cannot be read: {error}", "the file is damaged: download it again") from error


def _parquet(uri: str, max_line_bytes: int) -> Iterator[SourceLine]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ConfigurationError(f"reading {uri} needs pyarrow", "pip install retro-ops[parquet]") from error
    number = 0
    with io.BufferedReader(_Seekable(uri), 2**20) as stream:
        try:
            for batch in parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    line = json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
                    yield uri, number, line if len(line) <= max_line_bytes else None
        except ArrowInvalid as error:
            raise BadInputError(
                f"{uri} is not a Parquet file: {error}", "the file is damaged: download it again"
            ) from error


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
