"""Retrieval as a grid of cells: a part of the vectors, searched for a range of the queries. Standard library only.

Where the vectors do not fit on one worker's GPUs, each worker that searches them all reads them all. A cell loads one
part and searches it for one range of the queries, so W workers read the vectors W / parts times rather than W times.
The partial neighbours of a row, from the cells of all parts, are merged by (distance, id).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from retro_ops.errors import BadInputError
from retro_ops.plan.plan import SPLITS, Split

SLOT_BYTES = 50
"""Of a vector on a GPU, beside its numbers: up to 9 half-precision numbers for its square and padding, and 8 bytes each
for its exact square, id, document and slot."""


@dataclass(frozen=True)
class Grid:
    """``parts`` of the vectors times ``ranges`` of the queries; splits with fewer queries have fewer ranges."""

    parts: int
    ranges: int

    def __str__(self) -> str:
        return f"{self.parts}x{self.ranges}"


@dataclass(frozen=True)
class Cell:
    """Part number ``part`` of ``parts``, for range number ``range`` of ``ranges`` of the queries of ``split``."""

    split: Split
    part: int
    parts: int
    range: int
    ranges: int

    @property
    def name(self) -> str:
        return f"{self.split}-part-{self.part}-of-{self.parts}-range-{self.range}-of-{self.ranges}"


def parse(text: str) -> Grid:
    """``13x5``: 13 parts, 5 ranges."""
    found = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if not found:
        raise BadInputError(f"{text!r} is not a grid", "give parts and ranges: 13x5")
    return Grid(int(found[1]), int(found[2]))


def parse_cell(name: str) -> Cell:
    """The cell called ``name``; see ``Cell.name``."""
    splits = "|".join(SPLITS)
    found = re.fullmatch(rf"({splits})-part-(\d+)-of-(\d+)-range-(\d+)-of-(\d+)", name)
    if found:
        part, parts, number, ranges = map(int, found.groups()[1:])
        if part < parts and number < ranges:
            return Cell(cast(Split, found[1]), part, parts, number, ranges)
    raise BadInputError(f"{name!r} is not a cell of a grid", "`retro-ops search-parts --list` names the cells")


def ranges_of(grid: Grid, queries: Mapping[Split, int]) -> dict[Split, int]:
    """Ranges of each split: as many as its share of ``queries`` rows by split."""
    most = max(1, *queries.values())
    return {split: max(1, -(-grid.ranges * rows // most)) for split, rows in queries.items()}


def cells(grid: Grid, queries: Mapping[Split, int]) -> list[Cell]:
    """All cells, part by part, for ``queries`` rows by split."""
    return [
        Cell(split, part, grid.parts, number, ranges)
        for split, ranges in ranges_of(grid, queries).items()
        for part in range(grid.parts)
        for number in range(ranges)
    ]


def bounds(total: int, count: int, number: int) -> tuple[int, int]:
    """(first, end) of range ``number`` of ``count`` even ranges of ``total``."""
    return total * number // count, total * (number + 1) // count


def vector_bytes(dimension: int) -> int:
    """Memory of a vector on a GPU, at most."""
    return dimension * 2 + SLOT_BYTES


def choose(vectors: int, dimension: int, device_bytes: int, workers: int, most_cells: int) -> Grid | None:
    """The grid for ``vectors`` in an index and ``workers`` that each hold ``device_bytes`` of them; None if all fit.

    A cell reads its part of the vectors and its range of the queries, about as many. Workers take cells in rounds, so
    that grid is chosen whose rounds together read least, with up to a quarter more parts than necessary. Validation has
    a cell for each part besides, which reads little but the part: they should fit beside the last round.
    """
    least = -(-vectors * vector_bytes(dimension) // max(1, device_bytes))
    if least <= 1:
        return None

    def cost(shape: Grid) -> tuple[float, int]:
        cells, small = shape.parts * shape.ranges, 1 / shape.parts
        rounds, read = -(-cells // workers), small + 1 / shape.ranges
        beside = (rounds * workers - cells) * int(read / small)
        return rounds * read + (0 if beside >= shape.parts else small), cells

    shapes = (
        Grid(parts, ranges)
        for parts in range(least, least + least // 4 + 1)
        for ranges in range(1, most_cells // (parts * len(SPLITS)) + 1)
    )
    return min(shapes, key=cost, default=Grid(least, 1))
