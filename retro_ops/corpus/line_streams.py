"""Lines of files, which may be compressed: streamed, of bounded length."""

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import zstandard

from retro_ops.errors import BadInputError
from retro_ops.storage import store
from retro_ops.uris import file_name

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
STDIN = "-"

BOM = b"\xef\xbb\xbf"

MOST_BLANK_LINES = 1_000_000
LONGEST_SKIPPED_LINE = 2**30
"""Limits on lines without a record: a few megabytes can decompress to many hours of them."""

LONGEST_RECORD = 2**30
"""Bytes of a line of a sidecar."""

SKIPPED_BYTES = 2**20
NO_CORPUS = "check that it holds JSON lines; remove it from the corpus"


SourceLine = tuple[str, int, bytes | None]
"""(source, line number from 1, line without its line end, None if it is too long)"""


def lines(sources: Sequence[str], max_line_bytes: int) -> Iterator[SourceLine]:
    """Stream the lines of all sources in order. A line longer than ``max_line_bytes`` is None."""
    for source in sources:
        with _open(source) as stream:
            for number, line in enumerate(lines_of(stream, source, max_line_bytes), 1):
                yield source, number, line


class Counted(io.RawIOBase):
    """Counts the bytes read from a stream, in small reads, so that a decompressor cannot read far ahead."""

    MOST_BYTES = 4096

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(min(len(buffer), self.MOST_BYTES))
        buffer[: len(data)] = data
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes


@contextlib.contextmanager
def _open(source: str) -> Iterator[IO[bytes]]:
    if source == STDIN:
        yield sys.stdin.buffer
        return
    with store.open_stream(source) as raw, decompressed(raw, source) as stream:
        yield stream


@contextlib.contextmanager
def decompressed(raw: Any, source: str) -> Iterator[IO[bytes]]:
    """``raw``, decompressed if the name of ``source`` ends in .gz or .zst."""
    name = file_name(source)
    if name.endswith(".gz"):
        with gzip.open(raw) as stream:
            yield stream  # type: ignore[misc]
    elif name.endswith(".zst"):
        with io.BufferedReader(_ZstdStream(raw), 2**20) as stream:
            yield stream
    else:
        yield io.BufferedReader(raw) if isinstance(raw, io.RawIOBase) else raw


class _ZstdStream(io.RawIOBase):
    """Decompresses consecutive zstd frames. zstandard's own reader would accept a truncated file as complete."""

    READ_BYTES = 8192
    """Small, because a block of zeros expands 30,000 times."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        # Large windows are what `zstd --long` writes.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._raw.read(self.READ_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a zstd frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        length = min(len(buffer), len(self._ready))
        buffer[:length] = self._ready[:length]
        self._ready = self._ready[length:]
        return length


def lines_of(stream: IO[bytes], source: str, max_line_bytes: int) -> Iterator[bytes | None]:
    """Lines without their line end. A line longer than ``max_line_bytes`` is None and never held in memory.

    BadInputError for a file that is damaged, or that expands to blank lines or to one line without end.
    """
    blank = 0
    try:
        while line := stream.readline(max_line_bytes + 1):
            if len(line) <= max_line_bytes or line.endswith(b"\n"):
                line = line.rstrip(b"\r\n")
                if line.startswith(BOM):  # At the beginning of a file, also of one of several joined.
                    line = line.removeprefix(BOM)
                blank = 0 if line and not line.isspace() else blank + 1
                if blank > MOST_BLANK_LINES:
                    raise BadInputError(f"{source} has more than {MOST_BLANK_LINES:,} blank lines in a row", NO_CORPUS)
                yield line
                continue
            skipped = len(line)
            while (rest := stream.readline(SKIPPED_BYTES)) and not rest.endswith(b"\n"):
                skipped += len(rest)
                if skipped > LONGEST_SKIPPED_LINE:
                    raise BadInputError(f"{source} has a line of more than {LONGEST_SKIPPED_LINE:,} bytes", NO_CORPUS)
            yield None
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise BadInputError(
            f"{source} cannot be decompressed: {error}", "the file is damaged: download it again"
        ) from error
