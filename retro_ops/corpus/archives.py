"""Reads a source file of a recipe line by line: JSON lines, an archive of such files, or a Parquet table."""

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Iterator
from tarfile import EOFHeaderError as EndOfArchiveError  # type: ignore[attr-defined]
from tarfile import HeaderError, TarError
from typing import Any, Self

import zstandard

from retro_ops.corpus import line_streams, parquet_rows
from retro_ops.corpus.line_streams import SourceLine
from retro_ops.corpus.path_patterns import matcher
from retro_ops.corpus.recipes.model import format_of
from retro_ops.errors import BadInputError
from retro_ops.progress import say
from retro_ops.sizes import counted
from retro_ops.storage import store
from retro_ops.uris import file_name

SHOWN_MEMBERS = 10

HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
MOST_HEADER_BYTES = 2**20
"""Limit on a header that holds a long name or other facts about the next member."""

SPARSE = "it has a sparse member, whose size is without limit; pack it again without --sparse"
END_BYTES = 2**16


def lines(uri: str, members: str | None, max_line_bytes: int, text_key: str) -> Iterator[SourceLine]:
    """Stream the lines of a file, which is opened and decompressed once.

    The source of a line is ``uri``, or ``archive.tar.gz/member``. ``members``: pattern of the files to read if ``uri``
    is an archive. ``text_key``: column of a table that holds the text of a document.
    """
    kind = format_of(uri)
    if kind == "tar":
        yield from _archive(uri, members or "**", max_line_bytes)
    elif kind == "parquet":
        yield from parquet_rows.lines(uri, max_line_bytes, text_key)
    else:
        yield from line_streams.lines([uri], max_line_bytes)


def _archive(uri: str, members: str, max_line_bytes: int) -> Iterator[SourceLine]:
    passed = 0
    shown: list[str] = []
    matched = False
    name = file_name(uri).replace(".tgz", ".tar.gz")
    matches = matcher(members)
    with (
        _damage(uri),
        store.open_stream(uri) as raw,
        line_streams.decompressed(raw, name) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive,
    ):
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # Otherwise the list grows with each member.
            path = member.name.removeprefix("./")
            if not member.isfile() or not matches(path):
                passed += not member.isdir()
                shown = [*shown, path][:SHOWN_MEMBERS]
                continue
            matched = True
            content = archive.extractfile(member)
            assert content
            where = f"{uri}/{path}"
            with line_streams.decompressed(content, path) as text:
                for number, line in enumerate(line_streams.lines_of(text, where, max_line_bytes), 1):
                    yield where, number, line
        _check_end(archive)
    if not matched:
        raise BadInputError(
            f"no member of {uri} matches {members!r}",
            f"correct 'members'; the archive holds {', '.join(shown) or 'no files'}",
        )
    if passed:
        say(f"{uri}: passed over {counted(passed, 'member')}: {', '.join(shown)}", event="passed_over", files=passed)


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
