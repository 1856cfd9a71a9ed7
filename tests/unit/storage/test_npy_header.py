"""Headers of arrays: those of numpy and of other libraries are read, and nothing else is."""

import io
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy_format

from retro_ops.storage import npy_header


def array_file(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    npy_format.write_array(file, array, version)
    return file.getvalue()


def with_header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@given(
    st.sampled_from(["<f2", "<f4", ">f8", "<i8", "<u2", "|i1", "|b1", "<c8"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.booleans(),
)
def test_arrays_of_numbers_are_read_as_numpy_reads_them(
    dtype: str, shape: list[int], version: tuple[int, int], fortran: bool
) -> None:
    array = np.asarray(np.zeros(shape, dtype), order="F" if fortran else "C")
    data = array_file(array, version)
    if dtype == "<c8":
        with pytest.raises(ValueError, match="not that of an array of numbers"):
            npy_header.parse(data)
        return
    found = npy_header.parse(data)
    assert (found.dtype, found.shape, found.bytes) == (array.dtype, array.shape, len(data))
    # numpy writes that an array in both orders is in C order.
    assert found.fortran == (array.flags.f_contiguous and not array.flags.c_contiguous)


@pytest.mark.parametrize(
    "text",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}\n",
        b'{"descr": "<f4", "fortran_order": False, "shape": (3, 4)}   \n',
        b"{'descr':'<f4','fortran_order':False,'shape':(3,4)}",
    ],
)
def test_headers_of_other_libraries_are_read(text: bytes) -> None:
    found = npy_header.parse(with_header(text) + bytes(48))
    assert (found.shape, found.bytes) == ((3, 4), len(text) + 58)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }", "not that of an array of numbers"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "not that of an array of numbers"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", "not that of an array of numbers"),
        (b"{'descr': '<f3', 'fortran_order': False, 'shape': (3,), }", "unknown type: <f3"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, , 4), }", "impossible shape"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }" % (b"9" * 5000), "impossible shape"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (\x00 3,), }", "not that of an array of numbers"),
    ],
)
def test_other_headers_are_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        npy_header.parse(with_header(text))


@pytest.mark.parametrize("tail", [b" " * 2**21, b"3, " * 2**20, b"9" * 2**21])
def test_a_long_header_is_refused_at_once(tail: bytes) -> None:
    """Blanks and digits that never end would be matched again and again, and lock the interpreter meanwhile."""
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, " + tail
    for of in (text, b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2)" + tail):
        data = b"\x93NUMPY\x02\x00" + len(of).to_bytes(4, "little") + of
        with pytest.raises(ValueError, match="cut off or too long"):
            npy_header.parse(data)
        began = time.process_time()
        with pytest.raises(ValueError, match="not that of an array of numbers"):
            npy_header.parse(with_header(of[: npy_header.LONGEST]))
        assert time.process_time() - began < 1


def test_a_header_that_is_cut_off_is_refused() -> None:
    whole = array_file(np.zeros((3, 4)))
    for end in range(128):
        with pytest.raises(ValueError, match="header"):
            npy_header.parse(whole[:end])


@given(st.binary(max_size=40), st.integers(0, 140))
def test_any_bytes_are_a_header_or_a_value_error(data: bytes, cut: int) -> None:
    for text in (data, with_header(data), array_file(np.zeros((3, 4)))[:cut] + data):
        try:
            npy_header.parse(text)
        except ValueError:
            continue
