"""``.npy`` arrays in the store: rows read by range, rows appended by stream. Never pickles."""

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from tokenize import TokenError
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

from retro_ops.errors import BadInputError
from retro_ops.storage import read_ahead, store
from retro_ops.storage.base import Written

HEADER_BYTES = 16 * 2**10
"""Read first of each array. It is far more than a header of plain numbers takes, so a small array needs one request;
thousands of them take little memory."""


# Python 3.11 keeps one recursion depth of its parser for all threads and fails when two of them parse at once
# (python/cpython#106905), and headers of many arrays are read concurrently.
_parsing = threading.Lock()

DAMAGED_HEADER = (ValueError, TypeError, SyntaxError, TokenError, Warning)
"""Errors of numpy for a damaged header, which is text that Python parses."""


@dataclass(frozen=True)
class NpyReader:
    """An array in the store whose rows are read on demand."""

    uri: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    header: bytes = field(default=b"", repr=False, compare=False)
    """The first ``offset`` bytes of the file."""
    content: bytes | None = field(default=None, repr=False, compare=False)
    """The whole file, if it was read together with the header."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop`` (clipped to the array), in memory."""
        start, stop = max(0, start), min(stop, len(self))
        count = max(0, stop - start)
        first, length = self.offset + start * self.row_bytes, count * self.row_bytes
        if self.content is not None:
            data = self.content[first : first + length]
        else:
            data = store.at(self.uri).read_range(self.uri, first, length)
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def blocks(self, rows: int, first: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Pairs (first row, at most ``rows`` rows) in order, from row ``first`` on, read ahead of their use."""
        starts = range(first, len(self), rows)
        yield from zip(
            starts, read_ahead.ahead(partial(self.rows, start, start + rows) for start in starts), strict=True
        )


def open_npy(uri: str, *, ndim: int | None = None, kind: str | None = None) -> NpyReader:
    """Read the header of ``uri`` and check its length.

    ``kind`` holds the accepted ``dtype.kind`` letters (``"u"``, ``"iu"``, ``"f"``).
    Raises BadInputError for a file that is truncated or not a plain C-ordered array.
    """
    data, size = store.at(uri).head(uri, HEADER_BYTES)
    head = io.BytesIO(data)
    try:
        version = npy_format.read_magic(head)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        with _parsing:
            shape, fortran, dtype = read(head)
    except DAMAGED_HEADER as error:
        raise BadInputError(f"{uri} is not a .npy array: {error}", "it was changed: build it again") from error
    if (fortran and len(shape) > 1) or dtype.hasobject or not shape:
        raise BadInputError(f"{uri} must be a C-ordered array of numbers, not {dtype} {shape}")
    reader = NpyReader(uri, dtype, shape, head.tell(), data[: head.tell()], data if len(data) == size else None)
    if size != reader.offset + reader.row_bytes * len(reader):
        raise BadInputError(
            f"{uri} holds {size} bytes, its header promises {reader.offset + reader.row_bytes * len(reader)}",
            "it was cut off or changed: build it again",
        )
    if (ndim and len(shape) != ndim) or (kind and dtype.kind not in kind):
        raise BadInputError(f"{uri} has dtype {dtype} and shape {shape}, which this stage does not read")
    return reader


class NpyWriter:
    """Appends rows to a new array. The row count need not be known before ``close``.

    Use as a context manager: leaving it by an exception discards the array.
    """

    def __init__(self, uri: str, dtype: DTypeLike, row_shape: tuple[int, ...] = (), rows: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._promised = rows
        self._rows = 0
        self._writer = store.at(uri).create(uri)
        self._uri = uri
        self._closed = False
        self._writer.write(self._header(rows or 0))

    def append(self, rows: NDArray[Any]) -> None:
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"{self._uri}: rows of shape {rows.shape[1:]}, expected {self._row_shape}")
        if rows.dtype != self._dtype:
            raise ValueError(f"{self._uri}: rows of dtype {rows.dtype}, expected {self._dtype}")
        self._rows += len(rows)
        self._writer.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def close(self) -> Written:
        if self._promised is None:
            self._writer.set_head(self._header(self._rows))
        elif self._promised != self._rows:
            raise ValueError(f"{self._uri}: {self._rows} rows written, {self._promised} promised")
        written = self._writer.close()
        self._closed = True
        return written

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._closed:
            self._writer.abort()

    def _header(self, rows: int) -> bytes:
        # numpy pads the header so that the first axis can grow in place: its length does not
        # depend on the row count.
        head = io.BytesIO()
        npy_format.write_array_header_1_0(
            head,
            {
                "descr": npy_format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (rows, *self._row_shape),
            },
        )
        return head.getvalue()
