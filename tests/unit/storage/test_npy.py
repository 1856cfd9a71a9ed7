"""Arrays on disk: the bytes of numpy, and clear errors for everything else."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.storage import npy, store


@pytest.mark.parametrize("shape", [(0,), (5,), (0, 4), (7, 4)])
def test_written_arrays_have_the_bytes_of_numpy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = io.BytesIO()
    np.save(expected, rows)
    for known in (None, shape[0]):
        uri = str(tmp_path / "a.npy")
        with npy.NpyWriter(uri, np.float32, shape[1:], rows=known) as writer:
            writer.append(rows[:3])
            writer.append(rows[3:])
            written = writer.close()
        assert Path(uri).read_bytes() == expected.getvalue()
        assert written.sha256 == store.sha256(uri)
    np.testing.assert_array_equal(npy.open_npy(uri).rows(1, 4), rows[1:4])


def test_what_is_no_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.arange(10))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((3, 4))))
    (tmp_path / "text.npy").write_text("hello")
    for name in ("cut", "pickled", "fortran", "text", "missing"):
        with pytest.raises(BadInputError, match=f"{name}.npy"):
            npy.open_npy(str(tmp_path / f"{name}.npy"))


# The second writer is left open on purpose, as a kill leaves it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_damaged_header_is_reported_or_harmless(tmp_path: Path) -> None:
    """Every bit of it: an array that can still be read has its shape, anything else names the file."""
    path = tmp_path / "array.npy"
    np.save(path, np.arange(12, dtype=np.int64).reshape(6, 2))
    sound = path.read_bytes()
    refused = []
    for bit in range(128 * 8):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            npy.open_npy(str(path))
        except BadInputError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert all("array.npy" in said for said in refused)


def test_an_array_that_cannot_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    writer = npy.NpyWriter(str(tmp_path / "taken"), np.int64)
    with pytest.raises(BadInputError, match="taken"), writer:
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


HEADERS = {
    "a negative shape": "{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 64), }",
    "a huge shape": f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({2**70}, 64), }}",
    "a huge number of columns": f"{{'descr': '<f2', 'fortran_order': False, 'shape': (0, {2**62}, 64), }}",
    "rows of no columns": f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({10**12}, 0), }}",
    "rows of nothing": f"{{'descr': '|V0', 'fortran_order': False, 'shape': ({10**12},), }}",
    "texts": "{'descr': '<U8', 'fortran_order': False, 'shape': (0,), }",
    "fields": "{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (0,), }",
    "no shape": "{'descr': '<f2', 'fortran_order': False, 'shape': (), }",
    "a shape of truth": "{'descr': '<f2', 'fortran_order': False, 'shape': (True, 1.5), }",
    "nested deep": "(" * 4000,
    "nested and closed": "[" * 2000 + "]" * 2000,
    "a long number": "{'descr': '<f2', 'fortran_order': False, 'shape': (" + "7" * 5000 + ",), }",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_no_array_has_is_refused(name: str, tmp_path: Path) -> None:
    header = HEADERS[name].encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(BadInputError, match=r"a\.npy"):
        npy.open_npy(str(tmp_path / "a.npy"))


@given(
    st.sampled_from(["<f2", "<f4"]),
    st.integers(1, 40),
    st.integers(0, 39),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 65504.0, -65504.0, -0.0]),
)
def test_rows_that_are_no_numbers_are_refused_where_they_are_read(dtype: str, rows: int, at: int, value: float) -> None:
    array = np.zeros((rows, 3), dtype)
    array[at % rows, 1] = value
    assert npy.is_finite(array) == bool(np.isfinite(array).all())
    array.view(f"u{array.itemsize}")[at % rows, 1] |= 0 if np.isfinite(value) else 1  # Another NaN.
    assert npy.is_finite(array) == bool(np.isfinite(array).all())


def test_the_row_that_is_no_number_is_named(tmp_path: Path) -> None:
    array = np.zeros((10, 3), np.float16)
    array[7, 2] = np.nan
    np.save(tmp_path / "a.npy", array)
    assert len(npy.open_npy(str(tmp_path / "a.npy"), finite=True).rows(0, 7)) == 7
    assert len(npy.open_npy(str(tmp_path / "a.npy"), finite=True).rows(5, 5)) == 0
    with pytest.raises(BadInputError, match=r"a\.npy has NaN or infinity in row 7"):
        npy.open_npy(str(tmp_path / "a.npy"), finite=True).rows(5, 10)
