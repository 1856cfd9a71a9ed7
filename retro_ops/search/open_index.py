"""Opens a filled index for search, together with the chunks that it was filled from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.compute.device import Device, gpus
from retro_ops.compute.fp16_scores import prepare
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import ListFile, memory_limit, open_if_larger_than
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.search import faiss_search, filters, gpu_search
from retro_ops.search.brute_force import exact_hits
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import Compare, Keys, comparing, on_host
from retro_ops.search.faiss_search import Coarse
from retro_ops.search.hits import NONE_REMOVED, Found, HitFilter, Queries, Removed
from retro_ops.search.ivf_parts import in_parts
from retro_ops.search.reranking import Index
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyReader, open_npy

MOST_CANDIDATES = 2**15
"""Rows that need more are searched exactly."""

HITS_AT_ONCE = 2**20
"""Hits whose tokens are compared at a time: 128 MB at 64 tokens, and as much of the queries'."""


def limits(parameters: Parameters, split: Split | None) -> filters.Limits:
    """Filters for the queries of ``split``. Leakage matters for validation only; by hand the split is unknown (None),
    and all filters apply."""
    if parameters.profile == "seed":
        return filters.Limits()
    if split == "train":
        return filters.Limits(overlap=parameters.max_overlap)
    return filters.Limits(parameters.max_overlap, parameters.max_shared_run, parameters.max_shared_ngrams)


def hit_filter(chunks: IndexedChunks, of: filters.Limits, pad_id: int) -> HitFilter | None:
    """Applies the filters ``of`` to hits among ``chunks``; None if there are none."""

    def reasons(tokens: filters.Tokens, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        codes = np.empty(len(ids), np.uint8)
        order = np.argsort(ids, kind="stable")  # So that each block is read once, however many hits there are.
        for some in (order[start : start + HITS_AT_ONCE] for start in range(0, len(order), HITS_AT_ONCE)):
            codes[some] = filters.reasons(of, tokens[rows[some]], chunks.tokens(ids[some]), pad_id)
        return codes

    return reasons if of else None


def comparer(device: Device) -> Compare:
    """Computes the scores of brute force on ``device``."""
    return comparing(prepare(device)) if device.chosen == "cuda" else on_host


@dataclass(eq=False)
class SearchedIndex:
    """The index at ``uri`` and its ``chunks``, searched by the queries of one split.

    Query shards that search it one after the other share it, and all that it has loaded.
    """

    uri: str
    chunks: IndexedChunks
    device: Device
    parameters: Parameters
    split: Split | None
    """None where it is unknown, as by hand."""
    pad_id: int
    trained: str = ""
    partials: tuple[str, ...] = ()
    """The trained index and the partial indexes of ``chunks``, where they are known; see ``over_lists``."""
    of_new_shards: dict[tuple[str, ...], Index] = field(default_factory=dict)
    """Indexes of new shards alone, by their partial indexes; see ``incremental``."""
    found_ahead: dict[str, Found] = field(default_factory=dict)
    """Neighbours of shards that were searched together with a smaller one, by their report; see ``retrieval``."""

    @cached_property
    def limits(self) -> filters.Limits:
        return limits(self.parameters, self.split)

    @cached_property
    def hit_filter(self) -> HitFilter | None:
        return hit_filter(self.chunks, self.limits, self.pad_id)

    @cached_property
    def compare(self) -> Compare:
        return comparer(self.device)

    @cached_property
    def index(self) -> Index:
        """Opened when it is first needed: an exact search or a small refresh does without.

        It is read part by part if it is larger than its limit in memory. BadInputError if it was not filled from
        ``chunks``.
        """
        everything = range(len(self.chunks.embeddings))
        if by_lists := self.over_lists(self.trained, self.partials, everything):
            return by_lists
        if parts := open_if_larger_than(memory_limit(self.parameters), [self.uri]):
            self._check_total(parts[0].total)
            return self.over_parts(parts, everything)
        loaded = load_index(self.uri)
        self._check_total(loaded.ntotal)
        return self.over(loaded, everything)

    def over(self, index: Any, positions: Sequence[int]) -> Index:
        """Search of a faiss ``index`` that holds the shards at ``positions`` (ascending), in global ids.

        A GPU searches the embeddings themselves, list by list; a CPU the codes of the index.
        """
        ids = self.chunks.ids_of(positions)
        if self.device.chosen == "cuda" and len(ids):
            return self._over_vectors(index, positions, None)
        by_codes = faiss_search.searcher(index, self.device, shard_over_gpus=False)
        lists = faiss_index.list_count(index)
        blocks = self.chunks.blocks_of(positions)
        return Index(_in_global_ids(by_codes, ids), blocks, len(ids), lists, MOST_CANDIDATES, self.hit_filter)

    def over_parts(self, files: Sequence[ListFile], positions: Sequence[int]) -> Index:
        """This search with index files that together hold the shards, and whose lists are read as needed.

        A GPU needs only the list of each vector.
        """
        limit = memory_limit(self.parameters).bytes
        if self.device.chosen == "cuda":
            lists_of = np.concatenate([file.numbers(memory.lists_at_once(limit)) for file in files])
            return self._over_vectors(files[0].empty(), positions, lists_of)
        ids, by_codes = self.chunks.ids_of(positions), in_parts(files, limit)
        blocks, lists = self.chunks.blocks_of(positions), len(files[0].sizes)
        coarse = _in_global_ids(by_codes, ids)
        return Index(coarse, blocks, len(ids), lists, MOST_CANDIDATES, self.hit_filter, coarse_rows=None)

    def over_lists(self, trained: str, partials: Sequence[str], positions: Sequence[int]) -> Index | None:
        """Search of whole vectors on GPUs, with the list of each vector as `build-faiss-index` noted it: no index is
        read but the ``trained`` one.

        ``partials``: partial indexes of the shards at ``positions``. None on a CPU, or if one of them has no such note,
        as those of earlier releases.
        """
        if self.device.chosen != "cuda" or not partials:
            return None
        readers = self._noted_lists(partials, positions)
        if readers is None:
            return None
        lists = read_ahead.side_by_side(lambda reader: reader.rows(0, len(reader)), readers, read_ahead.READERS)
        return self._over_vectors(load_index(trained), positions, np.concatenate(lists))

    def part(self, first: int, end: int) -> tuple[gpu_search.Scan, int]:
        """Search of the vectors ``first:end`` alone, in global ids, and the number of lists. GPUs only.

        BadInputError if the lists of the vectors are not known.
        """
        positions = range(len(self.chunks.embeddings))
        readers = self._noted_lists(self.partials, positions) if self.partials else None
        if readers is None:
            raise BadInputError(
                "a partial index has no partial.lists.npy: an earlier release built it",
                "build the index again, or use no grid",
            )
        starts = self.chunks.offsets
        lists = [
            reader.rows(max(first - int(starts[at]), 0), end - int(starts[at]))
            for at, reader in enumerate(readers)
            if starts[at] < end and starts[at + 1] > first
        ]
        index = load_index(self.trained)
        of = faiss_index.lists_of(index, np.arange(first, end), np.concatenate(lists))
        return self._scan(of, positions), faiss_index.list_count(index)

    def hits_between(self, first: int, end: int, queries: Queries, k: int) -> tuple[Keys, Removed]:
        """The neighbours of ``queries`` among the chunks ``first:end`` by brute force, keys ``[m, k]``, and the hits
        that are candidates before them. Needs no index."""
        if first == end:
            return Found.nothing(len(queries), k).keys, NONE_REMOVED
        if self.device.chosen != "cuda" or self.hit_filter:
            blocks = self.chunks.blocks_between(first, end)
            return exact_hits(queries, k, blocks, self.hit_filter, compare=self.compare)
        one_list = np.zeros((1, self.chunks.embeddings[0].shape[1]), np.float32)
        of = faiss_index.Lists(one_list, np.zeros(end - first, np.int32), np.arange(first, end), None)
        keys, _ = self._scan(of, range(len(self.chunks.embeddings))).nearest_and_own(queries, k, 1)
        return keys, NONE_REMOVED

    def over_hits(self, ids: NDArray[np.int64]) -> Index | None:
        """For tuning by ranks of lists, which needs the lists of the chunks ``ids`` (ascending) and no others.

        None on a CPU, which searches codes, or if the lists are not noted.
        """
        everything = range(len(self.chunks.embeddings))
        readers = self._noted_lists(self.partials, everything) if self.device.chosen == "cuda" else None
        if not readers:
            return None
        numbers = self.chunks.gather(ids, np.empty(len(ids), np.int32), lambda at: readers[at].rows)
        index = load_index(self.trained)
        scan = self._scan(faiss_index.lists_of(index, ids, numbers), everything)
        return self._index_over(scan, everything, self.chunks.total, faiss_index.list_count(index))

    def _noted_lists(self, partials: Sequence[str], positions: Sequence[int]) -> list[NpyReader] | None:
        """The list of each vector of ``partials``, which hold the shards at ``positions``; None if one is not noted."""
        uris = [paths.lists_uri(uri) for uri in partials]
        if not all(read_ahead.side_by_side(store.exists, uris)):
            return None
        readers = read_ahead.side_by_side(partial(open_npy, ndim=1, kind="i"), uris)
        for reader, position in zip(readers, positions, strict=True):
            if len(reader) != len(self.chunks.embeddings[position]):
                raise BadInputError(
                    f"{reader.uri} has {len(reader):,} rows, its shard has {len(self.chunks.embeddings[position]):,}",
                    "repair the shard",
                )
        return readers

    def _over_vectors(self, index: Any, positions: Sequence[int], lists_of: NDArray[np.int32] | None) -> Index:
        """Search of whole vectors on GPUs. ``lists_of``: the list of each vector, if ``index`` is empty."""
        ids = self.chunks.ids_of(positions)
        scan = self._scan(faiss_index.lists_of(index, ids, lists_of), positions)
        return self._index_over(scan, positions, len(ids), faiss_index.list_count(index))

    def _index_over(self, scan: gpu_search.Scan, positions: Sequence[int], total: int, lists: int) -> Index:
        blocks = self.chunks.blocks_of(positions)
        return Index(None, blocks, total, lists, MOST_CANDIDATES, self.hit_filter, vectors=scan, compare=self.compare)

    def _scan(self, of: faiss_index.Lists, positions: Sequence[int]) -> gpu_search.Scan:
        prepare(self.device)
        devices = gpus()
        capacity = min(map(gpu_search.capacity, devices))
        spans = gpu_search.spans(of, self.chunks.embeddings[0].shape[1], devices, capacity)
        return gpu_search.Scan(of, self.chunks.blocks_of(positions), spans)

    def _check_total(self, total: int) -> None:
        if total != self.chunks.total:
            raise BadInputError(
                f"{self.uri} holds {total:,} vectors, its index spec names {self.chunks.total:,}",
                "give the index spec that the index was filled from",
            )


def planned_index(plan: Plan, split: Split, device: Device, parameters: Parameters) -> SearchedIndex:
    """The index of ``split`` as ``plan`` defines it."""
    chunks = IndexedChunks(paths.index_shards(plan, split))
    built = paths.trained_index_uri(plan), paths.partial_indexes(plan, split)
    return SearchedIndex(paths.index_uri(plan, split), chunks, device, parameters, split, plan.identity.pad_id, *built)


def _in_global_ids(by_codes: Coarse, ids: NDArray[np.int64]) -> Coarse:
    """``by_codes``, whose results are row numbers, with the global id of each row."""

    def search(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        distances, rows = by_codes(queries, width, nprobe)
        return distances, np.where(rows < 0, rows, ids[rows])

    return search
