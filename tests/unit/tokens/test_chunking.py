"""Chunks of documents, against a naive loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.tokens.chunking import chunk_documents, token_dtype
from retro_ops.tokens.packing import from_lists

DOCUMENTS = st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=8)


@given(DOCUMENTS, st.integers(1, 7), st.integers(0, 9))
def test_chunks_equal_a_naive_loop(documents: list[list[int]], size: int, pad: int) -> None:
    rows, starts, owners = [], [], []
    for number, ids in enumerate(documents):
        padded = ids + [pad] * (-len(ids) % size) or [pad] * size
        starts.append(len(rows))
        for start in range(0, len(padded), size):
            rows.append(padded[start : start + size])
            owners.append(number)
    found = chunk_documents(from_lists(documents, len(documents)), size, pad, np.dtype(np.uint16))
    assert found.chunks.tolist() == rows
    assert found.seq2chunk.tolist() == starts
    assert found.chunk2seq.tolist() == owners
    assert (found.chunks.dtype, found.seq2chunk.dtype, found.chunk2seq.dtype) == (np.uint16, np.int64, np.int32)


def test_the_token_dtype_never_wraps() -> None:
    assert token_dtype(65_536, "auto") == np.uint16
    assert token_dtype(65_537, "auto") == np.uint32
    with pytest.raises(BadInputError, match="uint16 holds 65,536"):
        token_dtype(65_537, "uint16")
