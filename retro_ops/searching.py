"""A filled index together with the chunks it was filled from, as the search reads them; and how wide to search it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retro_ops import layout, store
from retro_ops.arrays import NpyReader, open_npy
from retro_ops.core import faiss_index, filters, scan, tuning
from retro_ops.core.exact import MAX_CHUNKS
from retro_ops.core.nearness import prepare
from retro_ops.core.sampling import sample_rows
from retro_ops.core.search import Block, Blocks, Coarse, Index, Queries, Refuse, Width
from retro_ops.device import Device, Room, room
from retro_ops.errors import BadInputError
from retro_ops.index_lists import ListFile, in_parts, too_large
from retro_ops.indexes import load_index
from retro_ops.progress import say
from retro_ops.specs import IndexShard, Parameters, Split

BLOCK_ROWS = 8192

MOST_CANDIDATES = 2**15
"""More are not looked for before exact search."""

SearchedBy = Literal["codes", "vectors"]

UNKNOWN_DOCUMENT = np.uint64(2**63)
"""Identity of queries whose document nobody knows: with the row number added, equal to no other."""


class Documents:
    """Identity of the document of each chunk, uint64.

    From the files that `tokenize-and-chunk` writes, so that copies are recognised in any shard. If one of the shards
    has none (arrays from elsewhere), a document is its place: shard and number.
    """

    def __init__(self, chunks: Sequence[str], chunk2seqs: Sequence[str]) -> None:
        uris = [layout.document_ids_uri(uri) for uri in chunks]
        self.by_content = all(store.exists(uri) for uri in uris)
        self._readers = [
            open_npy(uri, ndim=1, kind="u" if self.by_content else "i")
            for uri in (uris if self.by_content else chunk2seqs)
        ]

    def rows(self, position: int, start: int, stop: int) -> NDArray[np.uint64]:
        rows = self._readers[position].rows(start, stop)
        return rows if self.by_content else rows.astype(np.uint64) + np.uint64(position << 32)


class IndexedChunks:
    """Embeddings of the shards of an index spec, read block by block; global ids follow the order of the shards."""

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        self.embeddings = [open_npy(shard.embeddings, ndim=2, kind="f") for shard in shards]
        self._chunks = [shard.chunks for shard in shards]
        self.documents = Documents([shard.chunks for shard in shards], [shard.chunk2seq for shard in shards])
        self.offsets = np.concatenate(([0], np.cumsum([len(reader) for reader in self.embeddings]))).astype(np.int64)
        self.total = int(self.offsets[-1])
        if self.total > MAX_CHUNKS:
            raise BadInputError(f"the index spec names {self.total:,} chunks, more than {MAX_CHUNKS:,}", "split it")

    @cached_property
    def chunks(self) -> list[NpyReader]:
        """Their tokens, which only filters and cards read."""
        return [open_npy(uri, ndim=2, kind="u") for uri in self._chunks]

    def blocks(self, wanted: NDArray[np.int64] | None) -> Iterator[Block]:
        return self.blocks_of(range(len(self.embeddings)))(wanted)

    def blocks_of(self, positions: Iterable[int]) -> Blocks:
        """The blocks of some shards, ``positions`` ascending."""
        kept = list(positions)

        def ranges(wanted: NDArray[np.int64] | None) -> Iterator[tuple[int, int, int]]:
            if wanted is None:
                for position in kept:
                    for start in range(0, len(self.embeddings[position]), BLOCK_ROWS):
                        yield position, start, min(start + BLOCK_ROWS, len(self.embeddings[position]))
                return
            for position, _, local in self._wanted(wanted):
                yield position, int(local[0]), int(local[-1]) + 1

        return lambda wanted: store.ahead(partial(self._block, *of) for of in ranges(wanted))

    def ids_of(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Global ids of the chunks of some shards."""
        return np.concatenate([np.arange(self.offsets[at], self.offsets[at + 1]) for at in positions])

    def _wanted(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, slice, NDArray[np.int64]]]:
        """Of each block that holds any of the (ascending) ``ids``: shard, which of the ids, and their rows in it.

        Of a block that few ask for, only the part between the first and the last of them need be read.
        """
        for position, reader in enumerate(self.embeddings):
            offset = int(self.offsets[position])
            for start in range(0, len(reader), BLOCK_ROWS):
                end = min(start + BLOCK_ROWS, len(reader))
                low, high = np.searchsorted(ids, (offset + start, offset + end))
                if low < high:
                    yield position, slice(low, high), ids[low:high] - offset

    def tokens(self, ids: NDArray[np.int64]) -> filters.Tokens:
        """Tokens of the chunks ``ids`` ``[n]``, in any order: ``[n, chunk_size]``."""
        dtype = np.result_type(*(reader.dtype for reader in self.chunks))
        return self._gather(ids, np.empty((len(ids), self.chunks[0].shape[1]), dtype), lambda i: self.chunks[i].rows)

    def owners(self, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Identity of the documents of the chunks ``ids`` ``[n]``, in any order."""
        return self._gather(ids, np.empty(len(ids), np.uint64), lambda i: partial(self.documents.rows, i))

    def _gather(
        self, ids: NDArray[np.int64], out: NDArray[Any], rows_of: Callable[[int], Callable[[int, int], NDArray[Any]]]
    ) -> NDArray[Any]:
        """Rows ``ids`` into ``out``; each block is read once."""
        order = np.argsort(ids, kind="stable")
        for position, which, local in self._wanted(ids[order]):
            out[order[which]] = rows_of(position)(int(local[0]), int(local[-1]) + 1)[local - local[0]]
        return out

    def _block(self, position: int, first: int, end: int) -> Block:
        vectors = self.embeddings[position].rows(first, end).astype(np.float16)
        return Block(int(self.offsets[position]) + first, vectors, self.documents.rows(position, first, end))


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
    room, everything = room_for(parameters), range(len(chunks.embeddings))
    parts = too_large([uri], room)
    if parts:
        _check_total(uri, parts[0].total, chunks)
        return search_in_parts(parts, chunks, everything, device, refuse, room)
    loaded = load_index(uri)
    _check_total(uri, loaded.ntotal, chunks)
    return search_of(loaded, chunks, everything, device, refuse)


def room_for(parameters: Parameters) -> Room:
    return room(parameters.search_memory, parameters.memory_budget)


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
    room: Room,
) -> Index:
    """As ``search_of``, of files whose lists are read as they are needed and that together hold what the shards at
    ``positions`` do. On a GPU only their numbers are."""
    if device.chosen == "cuda":
        numbers = np.concatenate([file.numbers(room.bytes // 3) for file in files])
        return _by_vectors(files[0].empty(), chunks, positions, device, refuse, numbers)
    ids, by_codes = chunks.ids_of(positions), in_parts(files, room.bytes)
    made = Index(_in_ids(by_codes, ids), chunks.blocks_of(positions), len(ids), len(files[0].sizes), MOST_CANDIDATES)
    return replace(made, refuse=refuse, coarse_rows=None)


def search_of(
    index: Any, chunks: IndexedChunks, positions: Sequence[int], device: Device, refuse: Refuse | None
) -> Index:
    """Of a faiss ``index`` that was filled from the shards at ``positions`` (ascending), in global ids. A GPU searches
    the embeddings themselves, list by list; the CPU the codes."""
    ids = chunks.ids_of(positions)
    if device.chosen == "cuda" and len(ids):
        return _by_vectors(index, chunks, positions, device, refuse, None)
    by_codes = faiss_index.searcher(index, device, shard_over_gpus=False)
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
    capacity = min(map(scan.capacity, devices))
    made = scan.Scan(of, blocks, scan.spans(of, chunks.embeddings[0].shape[1], devices, capacity))
    lists = faiss_index.list_count(index)
    return Index(made.coarse, blocks, len(ids), lists, MOST_CANDIDATES, refuse, made.nearest)


def _in_ids(by_codes: Coarse, ids: NDArray[np.int64]) -> Coarse:
    """What a search finds by row, by global id."""

    def coarse(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        distances, found = by_codes(queries, width, nprobe)
        return distances, np.where(found < 0, found, ids[found])

    return coarse


@dataclass(frozen=True)
class Tuned:
    """How wide to search ``vectors`` for the recall that ``sample`` queries had; width None: exact search."""

    width: Width | None
    vectors: int
    sample: int
    recall: float
    lower_bound: float
    target: float
    reached: bool
    searched: SearchedBy
    """What: whole vectors in as many lists bring more neighbours than codes do."""
    table: list[dict[str, Any]]
    """Recall by number of lists and candidates, as measured."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def width_from_json(entry: dict[str, Any]) -> Width | None:
    return Width(**entry["width"]) if entry["width"] else None


TABLE_CANDIDATES = (4, 16, 64, 256, 1024)


def tune(queries: Queries, index: Index, parameters: Parameters) -> Tuned:
    """Measure on ``queries`` (a sample) what reaches ``target_recall``; a width that was given is only measured."""
    k, target = parameters.num_neighbours, parameters.target_recall
    searched: SearchedBy = "vectors" if index.nearest else "codes"
    if target >= 1:
        return Tuned(None, index.total, len(queries), 1.0, 1.0, target, reached=True, searched=searched, table=[])
    truth = index.exact(queries, k).keys
    made = tuning.trials(queries, truth, index, parameters.nprobe)
    if parameters.retrieval_margin is None:
        choice = tuning.choose(made, target, index, least=k)
    else:
        candidates = index.clip(Width(1, k + parameters.retrieval_margin)).candidates
        choice = tuning.choose_nprobe(made, candidates, target, index)
    table = [
        {"nprobe": trial.nprobe, **{f"recall_at_{count}": round(trial.recall(count), 4) for count in TABLE_CANDIDATES}}
        for trial in made
    ]
    said = "" if choice.reached else "; no width of this index is sure to reach the target"
    say(
        f"recall {choice.recall:.4f} (above {choice.lower_bound:.4f} with 95 % confidence, target {target}) on "
        f"{len(queries):,} queries with nprobe {choice.width.nprobe} and {choice.width.candidates} candidates{said}"
    )
    return Tuned(
        *(choice.width, index.total, len(queries), choice.recall, choice.lower_bound, target, choice.reached),
        searched=searched,
        table=table,
    )


@dataclass(frozen=True)
class QueryShard:
    """Rows that ask for neighbours. ``position``: its place in the index spec, None when it is not in it.

    ``tokens``: where they lie, only if a filter compares texts.
    """

    embeddings: NpyReader
    chunks: IndexedChunks
    position: int | None
    tokens: NpyReader | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, start: int, stop: int) -> Queries:
        vectors = self.embeddings.rows(start, stop).astype(np.float16)
        tokens = self.tokens.rows(start, stop) if self.tokens else None
        if self.position is None:
            unknown = UNKNOWN_DOCUMENT + np.arange(start, start + len(vectors), dtype=np.uint64)
            return Queries(vectors, unknown, tokens)
        return Queries(vectors, self.chunks.documents.rows(self.position, start, stop), tokens)


def query_shard(chunks: IndexedChunks, position: int, with_tokens: bool) -> QueryShard:
    """The shard at ``position`` of the index as queries."""
    return QueryShard(chunks.embeddings[position], chunks, position, chunks.chunks[position] if with_tokens else None)


def sample(shards: Sequence[QueryShard], count: int, seed: int) -> Queries:
    """A uniform sample without replacement over the rows of all ``shards``."""
    drawn = sample_rows(np.array([len(s) for s in shards], np.int64), count, seed)
    return join([take(shard, rows) for shard, rows in zip(shards, drawn, strict=True)])


def take(shard: QueryShard, rows: NDArray[np.int64]) -> Queries:
    """``rows`` (ascending) of ``shard``."""
    parts = [shard.rows(first, end).take(local) for first, end, local in _spans(rows)]
    return join(parts or [shard.rows(0, 0)])


def take_rows(reader: NpyReader, rows: NDArray[np.int64]) -> NDArray[Any]:
    """``rows`` (ascending) of an array."""
    parts = [reader.rows(first, end)[local] for first, end, local in _spans(rows)]
    return np.concatenate(parts or [reader.rows(0, 0)])


def _spans(rows: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(first, end, rows less first) of each block that holds any of ``rows``: what of it has to be read."""
    for of in np.split(rows, np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1):
        if len(of):
            yield int(of[0]), int(of[-1]) + 1, of - of[0]


def join(parts: Sequence[Queries]) -> Queries:
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Queries(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.documents for part in parts]),
        np.concatenate(tokens) if tokens else None,
    )
