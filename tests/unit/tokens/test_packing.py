"""Grouping rows for a model, against the plainest statement of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.tokens import packing

ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), max_size=20)


def _rows(lists: list[list[int]]) -> packing.Rows:
    return packing.from_lists(lists, len(lists))


@given(ROWS, st.integers(1, 40))
def test_batches_hold_every_row_once_and_no_more_than_they_may(lists: list[list[int]], most: int) -> None:
    rows = _rows(lists)
    found = list(packing.batches(rows.lengths, most))
    assert sorted(np.concatenate(found).tolist() if found else []) == list(range(len(lists)))
    for chosen in found:
        assert len(chosen) == 1 or len(chosen) * rows.lengths[chosen].max() <= most
        ids, mask = packing.padded(rows, chosen, 0)
        assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == [lists[i] for i in chosen]
        assert not ids[mask == 0].any()


@given(st.lists(ROWS, max_size=4), st.integers(9, 30), st.integers(1, 6))
def test_packed_rows_follow_one_another_in_arrays_of_one_size(
    parts: list[list[list[int]]], tokens: int, most_rows: int
) -> None:
    found = []
    packed = list(packing.pack(map(_rows, parts), tokens, most_rows))
    for batch in packed:
        assert (len(batch.ids), len(batch.starts)) == (tokens, most_rows + 2)
        assert 1 <= batch.rows <= most_rows
        for start, end in zip(batch.starts[: batch.rows], batch.starts[1:], strict=False):
            found.append(batch.ids[start:end].tolist())
        assert (batch.starts[batch.rows :] == batch.starts[batch.rows]).all()
    assert found == [row for part in parts for row in part]
    for batch in packed[:-1]:
        assert batch.rows == most_rows or batch.starts[-1] > tokens - 9, "another row would not have fitted"


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), max_size=6),
    st.lists(st.just(20), max_size=2),
    st.lists(st.just(30), max_size=2),
    st.integers(4, 9),
)
def test_wrapped_chunks_lose_special_ids_and_what_is_too_long(
    chunks: list[list[int]], before: list[int], after: list[int], longest: int
) -> None:
    dropped = np.isin(np.arange(10), (0, 7))
    found = packing.wrap(np.array(chunks, np.uint16).reshape(-1, 4), dropped, before, after, longest)
    room = longest - len(before) - len(after)
    wanted = [before + [token for token in chunk if token not in (0, 7)][:room] + after for chunk in chunks]
    assert [row.tolist() for row in np.split(found.ids, found.starts[1:-1])][: len(wanted)] == wanted
    assert found.lengths.tolist() == [len(row) for row in wanted]


def test_a_row_that_fits_in_no_batch_is_an_error() -> None:
    rows = packing.Rows(np.zeros(600, np.int32), np.array([600], np.int32))
    with pytest.raises(ValueError, match="a row of 600 ids does not fit in a batch of 512"):
        list(packing.pack([rows], 512, 16))
