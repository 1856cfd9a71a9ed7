"""Searches one part of the vectors for one range of the queries, and writes what it found: a cell of ``plan.grid``.

A row is short in an index if the probed lists of all parts together hold fewer than k chunks of other documents. Then
it is short in each part, so each cell searches the rows that are short in its part again, with four times the lists,
until they are full or every list was probed. These are the *levels* of a cell; the merge takes of each row the first
level that fills it (``merged_cells``).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.search.exact import NOTHING, Keys
from retro_ops.search.hits import QueryRows, Removed
from retro_ops.search.open_index import MOST_CANDIDATES
from retro_ops.search.reranking import WIDEN, Width
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyReader, NpyWriter, open_npy
from retro_ops.uris import join


class PartSearch(Protocol):
    """Search of whole vectors of one part (``gpu_search.Scan``)."""

    def nearest_and_own(self, queries: QueryRows, k: int, nprobe: int) -> tuple[Keys, Removed]: ...

    def hits(self, queries: QueryRows, width: int, nprobe: int) -> tuple[Keys, Removed]: ...


@dataclass(frozen=True)
class Layer:
    """Hits of ``n`` rows at one level: ``keys`` uint64 ``[n, w]`` of other documents; ``own`` uint64 ``[h]`` of the
    row's own document, row by row, and ``ends`` int64 ``[n]``, where those of each row end; ``rows`` int64 ``[n]``,
    ascending, in the range of the cell."""

    rows: NDArray[np.int64]
    keys: Keys
    ends: NDArray[np.int64]
    own: Keys

    @staticmethod
    def of(rows: NDArray[np.int64], keys: Keys, own: Removed) -> "Layer":
        order = np.argsort(own.rows, kind="stable")
        return Layer(rows, keys, np.cumsum(np.bincount(own.rows, minlength=len(rows))), own.keys[order])

    def removed(self) -> Removed:
        """The own hits, with rows as numbers of rows of this layer."""
        counts = np.diff(self.ends, prepend=0)
        return Removed.of_same_document(np.repeat(np.arange(len(self.rows)), counts), self.own)

    def take(self, which: NDArray[np.bool_]) -> "Layer":
        own = self.removed()
        kept = own.take(which[own.rows])
        places = np.cumsum(which) - 1
        return Layer.of(self.rows[which], self.keys[which], Removed.of_same_document(places[kept.rows], kept.keys))


@dataclass(frozen=True)
class Shape:
    """What a cell looks for: ``hits`` of each row, in ``nprobes`` lists by level."""

    nprobes: tuple[int, ...]
    hits: int
    of_any_document: bool
    """Whether hits of the row's own document are among them, as where a filter takes candidates in order."""


def shape_of(width: Width | None, lists: int, total: int, parameters: Parameters, filtered: bool) -> Shape:
    """The shape of the cells for a search of ``width`` (None: exact) in ``total`` vectors.

    With a filter there is one level: whether a row is short is known only when its texts have been compared.
    """
    if not filtered:
        return Shape(levels(width.nprobe if width else lists, lists), parameters.num_neighbours, False)
    if width is None:
        raise BadInputError("filters with --target-recall 1 have no grid", "run `retrieve-neighbours` without --grid")
    return Shape((min(width.nprobe, lists),), min(width.candidates, total, MOST_CANDIDATES), True)


def levels(nprobe: int, lists: int) -> tuple[int, ...]:
    """nprobe of each level: as wide as ``reranking.find`` searches short rows."""
    found = [min(nprobe, lists)]
    while found[-1] < lists:
        found.append(min(found[-1] * WIDEN, lists))
    return tuple(found)


def search(part: PartSearch, queries: QueryRows, shape: Shape, first: int) -> Iterator[tuple[int, Layer]]:
    """The levels of ``queries``, whose rows are numbered from ``first``, until no row is short in this part."""
    rows = np.arange(len(queries))
    for level, nprobe in enumerate(shape.nprobes):
        some = queries.select(rows) if level else queries
        search = part.hits if shape.of_any_document else part.nearest_and_own
        keys, own = search(some, shape.hits, nprobe)
        yield level, Layer.of(first + rows, keys, own)
        rows = rows[(keys == NOTHING).any(axis=1)]
        if not len(rows):
            return


FILES = ("rows", "keys", "ends", "own")


def file_uri(folder: str, name: str, level: int) -> str:
    return join(folder, f"{name}.{level}.npy")


class LayerWriter:
    """Writes the layers of a cell to ``folder``, some rows at a time. A context manager: an exception discards them.

    ``width``: keys of a row.
    """

    def __init__(self, folder: str, count: int, width: int) -> None:
        self._stack, self._ends = ExitStack(), [0] * count
        shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
            "rows": (np.int64, ()), "keys": (np.uint64, (width,)), "ends": (np.int64, ()), "own": (np.uint64, ()),
        }  # fmt: skip
        self._writers = [
            {
                name: self._stack.enter_context(NpyWriter(file_uri(folder, name, level), *shapes[name]))
                for name in FILES
                if level or name != "rows"  # Level 0 has all rows.
            }
            for level in range(count)
        ]

    def __enter__(self) -> "LayerWriter":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def append(self, level: int, layer: Layer) -> None:
        writers = self._writers[level]
        if level:
            writers["rows"].append(layer.rows)
        writers["keys"].append(layer.keys)
        writers["ends"].append(layer.ends + self._ends[level])
        writers["own"].append(layer.own)
        self._ends[level] += len(layer.own)

    def close(self) -> list[Written]:
        return [writer.close() for of_level in self._writers for writer in of_level.values()]


class CellFiles:
    """The layers of a finished cell in ``folder``, read by rows of its range."""

    def __init__(self, folder: str, levels: int) -> None:
        self._folder, self.levels = folder, levels
        self._all = {name: self._open(name, 0) for name in FILES if name != "rows"}
        self._short = [self._whole(level) for level in range(1, self.levels)]

    @staticmethod
    def finished(folder: str, digest: str) -> "CellFiles":
        """BadInputError if the cell in ``folder`` is not finished, or was made from other inputs."""
        done = report.read(join(folder, paths.REPORT))
        if done is None or done["digest"] != digest:
            name = folder.rpartition("/")[2]
            raise BadInputError(f"{folder} does not exist", f"run `retro-ops search-parts --cell {name}` first")
        return CellFiles(folder, len(done["details"]["levels"]))

    def first(self, start: int, stop: int) -> Layer:
        """Level 0 of rows ``start:stop``."""
        ends = self._all["ends"].rows(start, stop)
        before = int(self._all["ends"].rows(start - 1, start)[0]) if start else 0
        own = self._all["own"].rows(before, int(ends[-1]) if len(ends) else before)
        return Layer(np.arange(start, start + len(ends)), self._all["keys"].rows(start, stop), ends - before, own)

    def at(self, level: int, rows: NDArray[np.int64]) -> Layer:
        """A higher level of ``rows`` (ascending), all of which it must hold."""
        layer = self._short[level - 1]
        return layer.take(np.isin(layer.rows, rows))

    def _open(self, name: str, level: int) -> NpyReader:
        return open_npy(file_uri(self._folder, name, level), ndim=2 if name == "keys" else 1, kind="ui")

    def _whole(self, level: int) -> Layer:
        readers = [self._open(name, level) for name in FILES]
        return Layer(*(reader.rows(0, len(reader)) for reader in readers))
