"""Rows of ``.npy`` arrays by range, without numpy: the API server has none, and a page reads few rows."""

import ast
import functools
import struct
from dataclasses import dataclass
from typing import Any

from retro_airflow.pages.place import Place
from retro_ops.errors import BadInputError, DamagedError

HEADER_BYTES = 4 * 2**10

CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i4": "i", "i8": "q", "f4": "f", "f8": "d"}
"""Code of ``struct`` by numpy's dtype, both without the byte order."""


@dataclass(frozen=True)
class Rows:
    """An array of one or two dimensions whose rows are read on demand."""

    place: Place
    uri: str
    code: str
    """Byte order and code of ``struct``."""
    count: int
    """Number of rows."""
    width: int
    """Numbers in a row."""
    offset: int

    def read(self, start: int, stop: int) -> list[list[Any]]:
        """Rows ``start:stop``, clipped to the array."""
        start, stop = max(0, start), min(stop, self.count)
        if start >= stop:
            return []
        row = struct.Struct(f"{self.code[0]}{self.width}{self.code[1]}")
        data = self.place.read_range(self.uri, self.offset + start * row.size, (stop - start) * row.size)
        return [list(numbers) for numbers in row.iter_unpack(data)]

    def row(self, number: int) -> list[Any]:
        """Row ``number``. Raises BadInputError if the array is shorter."""
        if found := self.read(number, number + 1):
            return found[0]
        raise BadInputError(f"{self.uri} has no row {number}: it has {self.count:,}", "choose a smaller number")


@functools.lru_cache(4096)
def open_rows(place: Place, uri: str) -> Rows:
    """Read the header of the array at ``uri``; arrays of a version never change. Raises DamagedError."""
    data, _ = place.head(uri, HEADER_BYTES)
    try:
        long = data[6] > 1
        start = 12 if long else 10
        length = int.from_bytes(data[8:start], "little")
        header = ast.literal_eval(data[start : start + length].decode("latin-1"))
        code, shape = header["descr"][0].replace("|", "<") + CODES[header["descr"][1:]], header["shape"]
        count, width = shape if len(shape) == 2 else (*shape, 1)
    except (LookupError, ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise DamagedError(f"{uri} is not an array of numbers: {error!r}", "repair the dataset") from error
    if data[:6] != b"\x93NUMPY" or code[0] not in "<>" or header["fortran_order"] or min(count, width) < 0:
        raise DamagedError(f"{uri} is not an array that a stage wrote", "repair the dataset")
    return Rows(place, uri, code, count, width, start + length)
