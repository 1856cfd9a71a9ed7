"""Reads rows of ``.npy`` arrays in the store by range, and writes arrays row by row. Never unpickles."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

from retro_ops.errors import BadInputError
from retro_ops.storage import npy_header, read_ahead, store
from retro_ops.storage.base import Written

HEADER_BYTES = 16 * 2**10
"""Bytes read to get the header. More than any header needs, so that a small array is read in the same request."""

MOST_EMPTY_ROWS = 2**10


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
    """The whole file, if it was small enough to be read with the header."""
    finite: bool = False
    """Whether rows with NaN or infinity are refused."""

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
        rows = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        if self.finite:
            self._check_finite(rows, start)
        return rows

    def _check_finite(self, rows: NDArray[Any], start: int) -> None:
        if not rows.size or is_finite(rows):
            return
        row = start + int(np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[0])
        raise BadInputError(f"{self.uri} has NaN or infinity in row {row:,}", "build the file again")

    def blocks(self, rows: int, first: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, at most ``rows`` rows) in order from row ``first`` on, reading ahead."""
        starts = range(first, len(self), rows)
        size = rows * self.row_bytes
        reads = ((size, partial(self.rows, start, start + rows)) for start in starts)
        yield from zip(starts, read_ahead.ahead(reads), strict=True)


def is_finite(rows: NDArray[Any]) -> bool:
    """Whether no number of ``rows``, which are not empty, is NaN or infinite."""
    if rows.dtype != np.dtype("<f2"):
        return bool(np.isfinite(rows).all())
    # By bits, eight times as fast: the largest positive number is 0x7BFF, the largest negative one 0xFBFF.
    return int(rows.view(np.int16).max()) < 0x7C00 and int(rows.view(np.uint16).max()) < 0xFC00


def open_npy(uri: str, *, ndim: int | None = None, kind: str | None = None, finite: bool = False) -> NpyReader:
    """Read the header of ``uri`` and check the length of the file.

    ``kind``: accepted ``dtype.kind`` letters (``"u"``, ``"iu"``, ``"f"``). ``finite``: refuse rows with NaN or
    infinity when they are read. Raises BadInputError if the file is truncated or is not a C-ordered array of numbers
    with this kind and ``ndim``.
    """
    data, size = store.at(uri).head(uri, HEADER_BYTES)
    try:
        head = npy_header.parse(data)
    except ValueError as error:
        raise BadInputError(f"{uri} is not a .npy array: {error}", "the file is damaged: build it again") from error
    dtype, shape = head.dtype, head.shape
    if (head.fortran and len(shape) > 1) or not shape or not _is_possible(shape):
        message = f"{uri} must be a C-ordered array of numbers, but has dtype {dtype} and shape {shape}"
        raise BadInputError(message, "name an array that a stage wrote")
    header = data[: head.offset]
    reader = NpyReader(uri, dtype, shape, len(header), header, data if len(data) == size else None, finite)
    if size != head.bytes:
        raise BadInputError(
            f"{uri} has {size} bytes, but its header says {head.bytes}",
            "the file is truncated or damaged: build it again",
        )
    if (ndim and len(shape) != ndim) or (kind and dtype.kind not in kind):
        message = f"{uri} has dtype {dtype} and shape {shape}, which this stage cannot read"
        raise BadInputError(message, "check that the right file is named")
    return reader


def _is_possible(shape: tuple[int, ...]) -> bool:
    """Whether an array can have ``shape``. Rows of no columns could be any number of rows in no bytes, so they are few:
    the signatures of a shard without documents, one row for each of their numbers."""
    return shape[0] <= MOST_EMPTY_ROWS or all(shape[1:])


class NpyWriter:
    """Appends rows to a new array, whose length need not be known before ``close``.

    With ``rows`` an array that is too large for the store is an error before any of it is sent.

    Use as a context manager: an exception discards the array.
    """

    def __init__(self, uri: str, dtype: DTypeLike, row_shape: tuple[int, ...] = (), rows: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._promised = rows
        self._rows = 0
        header = self._header(rows or 0)
        row_bytes = self._dtype.itemsize * math.prod(row_shape)
        self._writer = store.at(uri).create(uri, None if rows is None else len(header) + rows * row_bytes)
        self._uri = uri
        self._closed = False
        self._writer.write(header)

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
            raise ValueError(f"{self._uri}: wrote {self._rows} rows instead of {self._promised}")
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
