"""Files that are compared with their checksum while they are read."""

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.storage import store
from retro_ops.storage.checked import checked_rows, copy
from retro_ops.storage.npy import NpyWriter


def written(rows: np.ndarray) -> tuple[str, str]:
    """A stored array and its SHA-256."""
    uri = f"memory://checked/{uuid.uuid4().hex}.npy"
    with NpyWriter(uri, rows.dtype, rows.shape[1:], len(rows)) as writer:
        writer.append(rows)
        return uri, writer.close().sha256


@settings(max_examples=30)
@given(st.integers(0, 5000), st.integers(1, 3000), st.integers(0, 1))
def test_blocks_are_all_rows_with_an_overlap(count: int, rows: int, overlap: int) -> None:
    array = np.arange(count * 3).reshape(count, 3)
    uri, sha256 = written(array)
    blocks = list(checked_rows(uri, rows, sha256, overlap=overlap))
    assert len(blocks) == -(-count // rows)
    for number, block in enumerate(blocks):
        np.testing.assert_array_equal(block, array[number * rows : (number + 1) * rows + overlap])


def test_a_changed_file_is_found_at_the_end_of_reading() -> None:
    uri, sha256 = written(np.arange(5000))
    store.write(uri, store.read(uri)[:-1] + b"x")
    blocks = checked_rows(uri, 1000, sha256)
    assert [len(next(blocks)) for _ in range(5)] == [1000] * 5
    with pytest.raises(BadInputError, match=r"was modified after its stage wrote it \(SHA-256 differs\)"):
        next(blocks)
    with pytest.raises(BadInputError, match="was modified after its stage wrote it"):
        copy(uri, f"{uri}.copy", sha256)
    assert not store.exists(f"{uri}.copy")
