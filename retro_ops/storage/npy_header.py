"""The header of a ``.npy`` array (format versions 1 to 3), read without evaluating it.

numpy parses it as Python text: untrusted text then raises some ten types of exception, which change with the version of
Python, and two threads of Python 3.11 cannot parse at the same time (python/cpython#106905).
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = b"\x93NUMPY"

LONGEST = 10_000
"""Bytes of a header, as numpy allows."""

MOST_NUMBERS = 2**56
"""More numbers than any array has. Below it, no size in bytes overflows."""

_DESCR = rb"""(['"])descr\1: *(['"])(?P<descr>[<>=|][biuf][0-9]{1,2})\2"""
_ORDER = rb"""(['"])fortran_order\4: *(?P<fortran>True|False)"""
_SHAPE = rb"""(['"])shape\6: *\((?P<shape>[0-9 ,]*)\)"""
HEADER = re.compile(rb"\{ *%s *, *%s *, *%s *(?:, *)?\} *\n?" % (_DESCR, _ORDER, _SHAPE))
"""As numpy and other libraries write it: the keys in alphabetical order."""


@dataclass(frozen=True)
class Header:
    """``offset``: bytes before the first number."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @property
    def bytes(self) -> int:
        """Size of the whole file."""
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


def parse(data: bytes) -> Header:
    """The header at the beginning of ``data``. ValueError with the reason if it is not that of an array of numbers."""
    if data[:6] != MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise ValueError("it does not begin with the header of an array")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    text = data[start : start + length]
    if length > LONGEST or len(text) < length:
        raise ValueError("its header is cut off or too long")
    found = HEADER.fullmatch(text)
    if not found:
        raise ValueError(f"its header is not that of an array of numbers: {text[:100].decode('latin1').strip()!r}")
    lengths = [length.strip() for length in found["shape"].split(b",")]
    if lengths[-1] == b"":
        lengths.pop()
    if not all(re.fullmatch(rb"[0-9]{1,17}", length) for length in lengths):
        raise ValueError(f"its header has an impossible shape: ({found['shape'][:100].decode()})")
    shape = tuple(map(int, lengths))
    if math.prod(max(1, length) for length in shape) >= MOST_NUMBERS:
        raise ValueError(f"its header has an impossible shape: {shape}")
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError:  # Such as a float of 3 bytes.
        raise ValueError(f"its header has an unknown type: {found['descr'].decode()}") from None
    return Header(dtype, shape, found["fortran"] == b"True", start + len(text))
