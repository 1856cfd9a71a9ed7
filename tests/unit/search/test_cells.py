"""A grid of cells, merged, is one search of all vectors: its keys, its counts of removed hits, and its effort."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import blocks_of, unit_vectors

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.index.faiss_index import Lists
from retro_ops.plan import grid
from retro_ops.search import cells, gpu_search, reranking
from retro_ops.search.cells import CellFiles, Shape
from retro_ops.search.gpu_search import Scan, Span
from retro_ops.search.hits import Queries
from retro_ops.search.merged_cells import MergedCells
from retro_ops.search.reranking import Effort, Index, Width


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """Small padding: the search pads each batch to PROBE_ROWS rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_search, "PROBE_ROWS", 64)
        yield


class Corpus:
    """Vectors in lists, some of them near copies, and documents of which some fill whole lists."""

    def __init__(self, rows: int, lists: int, seed: int, ties: bool) -> None:
        rng = np.random.default_rng(seed)
        self.vectors = unit_vectors(rows, 8, seed, ties)
        self.documents = np.sort(rng.integers(0, max(1, rows // 6), rows)).astype(np.uint64)
        self.blocks = blocks_of(self.vectors, self.documents, 7)
        self.centroids = rng.normal(size=(lists, 8)).astype(np.float32)
        self.of = rng.integers(0, lists, rows).astype(np.int32)

    def scan(self, first: int, end: int) -> Scan:
        of = Lists(self.centroids, self.of[first:end], np.arange(first, end), None)
        return Scan(of, self.blocks, [Span(0, end - first, "cpu")])

    def write_cell(self, folder: Path, part: Scan, queries: Queries, shape: Shape, batch: int) -> None:
        """As `search-parts` does."""
        with cells.LayerWriter(str(folder), len(shape.nprobes), shape.hits) as writer:
            for start in range(0, len(queries), batch):
                some = queries.read(start, start + batch)
                for level, layer in cells.search(part, some, shape, start):
                    writer.append(level, layer)
            outputs = writer.close()
        details = {"levels": list(shape.nprobes)}
        done = report.Outcome(counts={}, outputs=outputs, details=details)
        report.run_once("search-parts", str(folder / "report.json"), "d", {}, [], lambda: done)


@settings(max_examples=25)
@given(
    st.integers(8, 60), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3),
    st.integers(8, 40), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_merged_cells_are_one_search(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int, lists: int, nprobe: int, k: int, parts: int, ranges: int, batch: int,
    ties: bool, filtered: bool, seed: int,
) -> None:  # fmt: skip
    folder, made = tmp_path_factory.mktemp("cells"), Corpus(rows, lists, seed, ties)
    queries = Queries(made.vectors, made.documents)
    width = Width(min(nprobe, lists), k + 3)
    shape = Shape(cells.levels(width.nprobe, lists), k, False)
    if filtered:
        shape = Shape((width.nprobe,), width.candidates, True)
    for part in range(parts):
        for number in range(ranges):
            vectors, of = grid.bounds(rows, parts, part), grid.bounds(rows, ranges, number)
            made.write_cell(folder / f"{part} {number}", made.scan(*vectors), queries.read(*of), shape, batch)

    def opened(part: int, number: int) -> CellFiles:
        return CellFiles.finished(str(folder / f"{part} {number}"), "d")

    # The query shard is the rows from the seventh on, read in two goes.
    merged, effort = MergedCells(opened, parts, ranges, 7, rows, k), Effort()
    shard, whole = queries.read(7, rows), made.scan(0, rows)
    halves = [(0, len(shard) // 3), (len(shard) // 3, len(shard))]
    if filtered:
        for start, stop in halves:
            keys, own = merged.hits(start, stop, width.candidates)
            all_keys, all_own = whole.hits(shard.read(start, stop), width.candidates, width.nprobe)
            np.testing.assert_array_equal(np.sort(keys), np.sort(all_keys))
            assert set(zip(own.rows, own.keys, strict=True)) == set(zip(all_own.rows, all_own.keys, strict=True))
        return
    index = Index(None, made.blocks, rows, lists, 2**15, vectors=whole)
    expected, of_search = [], Effort()
    for start, stop in halves:
        expected.append(reranking.find(shard.read(start, stop), k, index, width, 10**6, of_search))
    found = [merged.neighbours(start, stop, effort) for start, stop in halves]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_array_equal(one.removed, other.removed)
    assert effort.widened_rows == of_search.widened_rows


def test_a_cell_that_is_missing_or_of_other_vectors_is_named(tmp_path: Path) -> None:
    made = Corpus(20, 2, 0, ties=False)
    queries, shape = Queries(made.vectors, made.documents), Shape((1, 2), 2, False)
    made.write_cell(tmp_path / "one", made.scan(0, 20), queries, shape, 8)
    for folder, digest in ((tmp_path / "other", "d"), (tmp_path / "one", "e")):
        with pytest.raises(BadInputError, match=f"search-parts --cell {folder.name}"):
            CellFiles.finished(str(folder), digest)
