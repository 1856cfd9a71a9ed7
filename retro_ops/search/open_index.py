"""A filled index together with the chunks it was filled from, as the search reads them; and how wide to search it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.compute.device import Device
from retro_ops.compute.fp16_scores import prepare
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import ListFile, memory_limit, open_if_larger_than
from retro_ops.memory import MemoryLimit
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Split
from retro_ops.search import faiss_search, filters, gpu_search
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import Compare, comparing, on_host
from retro_ops.search.faiss_search import Coarse
from retro_ops.search.ivf_parts import in_parts
from retro_ops.search.reranking import Index, Queries, Refuse

MOST_CANDIDATES = 2**15
"""More are not looked for before exact search."""


def limits(parameters: Parameters, split: Split | None) -> filters.Limits:
    """What filters queries of ``split``: leakage concerns those of validation (or of nobody knows what)."""
    if parameters.profile == "seed":
        return filters.Limits()
    if split == "train":
        return filters.Limits(overlap=parameters.max_overlap)
    return filters.Limits(parameters.max_overlap, parameters.max_shared_run, parameters.max_shared_ngrams)


def refuser(chunks: IndexedChunks, of: filters.Limits, pad_id: int) -> Refuse | None:
    def refuse(queries: Queries, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        assert queries.tokens is not None
        return filters.reasons(of, queries.tokens[rows], chunks.tokens(ids), pad_id)

    return refuse if of else None


def open_index(
    uri: str, chunks: IndexedChunks, device: Device, parameters: Parameters, split: Split | None, pad_id: int
) -> Index:
    """The index at ``uri`` on ``device``; part by part, if it is larger than it may be in memory. BadInputError when it
    was not filled from ``chunks``."""
    refuse = refuser(chunks, limits(parameters, split), pad_id)
    limit, everything = memory_limit(parameters), range(len(chunks.embeddings))
    parts = open_if_larger_than(limit, [uri])
    if parts:
        _check_total(uri, parts[0].total, chunks)
        return search_in_parts(parts, chunks, everything, device, refuse, limit)
    loaded = load_index(uri)
    _check_total(uri, loaded.ntotal, chunks)
    return search_of(loaded, chunks, everything, device, refuse)


def _check_total(uri: str, total: int, chunks: IndexedChunks) -> None:
    if total != chunks.total:
        raise BadInputError(
            f"{uri} holds {total:,} vectors, its index spec names {chunks.total:,}",
            "give the index spec that the index was filled from",
        )


def search_in_parts(
    files: Sequence[ListFile],
    chunks: IndexedChunks,
    positions: Sequence[int],
    device: Device,
    refuse: Refuse | None,
    limit: MemoryLimit,
) -> Index:
    """As ``search_of``, of files whose lists are read as they are needed and that together hold what the shards at
    ``positions`` do. On a GPU only their numbers are."""
    if device.chosen == "cuda":
        numbers = np.concatenate([file.numbers(memory.lists_at_once(limit.bytes)) for file in files])
        return _by_vectors(files[0].empty(), chunks, positions, device, refuse, numbers)
    ids, by_codes = chunks.ids_of(positions), in_parts(files, limit.bytes)
    blocks, lists = chunks.blocks_of(positions), len(files[0].sizes)
    return Index(_in_ids(by_codes, ids), blocks, len(ids), lists, MOST_CANDIDATES, refuse, coarse_rows=None)


def search_of(
    index: Any, chunks: IndexedChunks, positions: Sequence[int], device: Device, refuse: Refuse | None
) -> Index:
    """Of a faiss ``index`` that was filled from the shards at ``positions`` (ascending), in global ids. A GPU searches
    the embeddings themselves, list by list; the CPU the codes."""
    ids = chunks.ids_of(positions)
    if device.chosen == "cuda" and len(ids):
        return _by_vectors(index, chunks, positions, device, refuse, None)
    by_codes = faiss_search.searcher(index, device, shard_over_gpus=False)
    lists = faiss_index.list_count(index)
    return Index(_in_ids(by_codes, ids), chunks.blocks_of(positions), len(ids), lists, MOST_CANDIDATES, refuse)


def _by_vectors(
    index: Any,
    chunks: IndexedChunks,
    positions: Sequence[int],
    device: Device,
    refuse: Refuse | None,
    numbers: NDArray[np.int32] | None,
) -> Index:
    """On a GPU. ``numbers``: the list of each vector, if ``index`` does not hold them."""
    import torch

    blocks, ids = chunks.blocks_of(positions), chunks.ids_of(positions)
    name = prepare(device)
    devices = [f"{name}:{number}" for number in range(torch.cuda.device_count())]
    of = faiss_index.lists_of(index, ids, numbers)
    capacity = min(map(gpu_search.capacity, devices))
    made = gpu_search.Scan(of, blocks, gpu_search.spans(of, chunks.embeddings[0].shape[1], devices, capacity))
    lists, compare = faiss_index.list_count(index), comparer(device)
    return Index(made.coarse, blocks, len(ids), lists, MOST_CANDIDATES, refuse, made.nearest, compare=compare)


def comparer(device: Device) -> Compare:
    """Who computes the scores of brute force on ``device``."""
    return comparing(prepare(device)) if device.chosen == "cuda" else on_host


def _in_ids(by_codes: Coarse, ids: NDArray[np.int64]) -> Coarse:
    """What a search finds by row, by global id."""

    def coarse(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        distances, found = by_codes(queries, width, nprobe)
        return distances, np.where(found < 0, found, ids[found])

    return coarse
