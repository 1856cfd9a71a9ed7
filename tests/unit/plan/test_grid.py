"""The shape of a grid, and the names of its cells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.errors import BadInputError
from retro_ops.plan import grid
from retro_ops.plan.grid import Cell, Grid


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**10), st.integers(0, 10**10))
def test_cells_hold_each_pair_of_a_vector_and_a_query_once(parts: int, ranges: int, train: int, val: int) -> None:
    made = grid.cells(Grid(parts, ranges), {"train": train, "val": val})
    assert [grid.parse_cell(cell.name) for cell in made] == made
    for split, rows in (("train", train), ("val", val)):
        of = [cell for cell in made if cell.split == split]
        assert len({(cell.part, cell.range) for cell in of}) == len(of) == parts * of[0].ranges
        cuts = [grid.bounds(rows, of[0].ranges, number) for number in range(of[0].ranges)]
        assert [cuts[0][0], *(end for _, end in cuts)] == [*(first for first, _ in cuts), rows]


@given(st.integers(1, 2 * 10**10), st.integers(10**9, 10**11), st.integers(1, 200), st.integers(50, 1024))
def test_parts_fit_and_cells_are_no_more_than_allowed(vectors: int, device: int, workers: int, most: int) -> None:
    made = grid.choose(vectors, 384, device, workers, most)
    if made is None:
        assert vectors * 808 <= device
        return
    assert -(-vectors // made.parts) * 768 <= device
    assert len(grid.cells(made, {"train": vectors, "val": vectors // 100})) <= max(most, 2 * made.parts)


@pytest.mark.parametrize(("workers", "shape"), [(1, "10x1"), (8, "11x2"), (10, "10x1"), (20, "10x2"), (64, "12x5")])
def test_the_rounds_of_a_grid_are_full(workers: int, shape: str) -> None:
    assert str(grid.choose(10 * 10**6, 384, 10**6 * (384 * 2 + grid.SLOT_BYTES), workers, 256)) == shape


@pytest.mark.parametrize("text", ["", "0x3", "3x0", "3", "3x", "3x4x5", "-1x2", "99999x1", "³x4"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a grid"):
        grid.parse(text)


@pytest.mark.parametrize(
    "name", ["", "train", "test-part-0-of-1-range-0-of-1", "train-part-2-of-2-range-0-of-1", "../x", "val-part-0-of-1"]
)
def test_what_is_no_cell_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match="is not a cell"):
        grid.parse_cell(name)


def test_a_grid_is_written_as_it_is_read() -> None:
    assert grid.parse(str(Grid(13, 5))) == Grid(13, 5)
    assert Cell("val", 0, 13, 2, 5).name == "val-part-0-of-13-range-2-of-5"
