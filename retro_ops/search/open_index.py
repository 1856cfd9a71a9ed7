"""A filled index together with the chunks it was filled from, as the search reads them; and how wide to search it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device, Room, room
from retro_ops.compute.fp16_scores import comparing, prepare
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import ListFile, in_parts, too_large
from retro_ops.index.sampling import sample_rows
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.plan.specs import IndexShard
from retro_ops.progress import say
from retro_ops.search import filters, gpu_search, tuning
from retro_ops.search.exact import MAX_CHUNKS, Compare, on_host
from retro_ops.search.reranking import Block, Blocks, Coarse, Index, Queries, Refuse, Width
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyReader, open_npy

BLOCK_ROWS = 8192

KEPT_BYTES = 128 * 2**20
"""Of blocks that lie in several files and so are slow to read, kept once they were read."""

FEW_PARTS = 4
"""Of a block are read one after the other."""

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
        uris = [paths.document_ids_uri(uri) for uri in chunks]
        self.by_content = all(read_ahead.side_by_side(store.exists, uris))
        opened = partial(open_npy, ndim=1, kind="u" if self.by_content else "i")
        self._readers = read_ahead.side_by_side(opened, uris if self.by_content else chunk2seqs)

    def rows(self, position: int, start: int, stop: int) -> NDArray[np.uint64]:
        rows = self._readers[position].rows(start, stop)
        return rows if self.by_content else rows.astype(np.uint64) + np.uint64(position << 32)


class IndexedChunks:
    """Embeddings of the shards of an index spec, read block by block; global ids follow the order of the shards."""

    def __init__(self, shards: Sequence[IndexShard]) -> None:
        opened = partial(open_npy, ndim=2, kind="f")
        self.embeddings = read_ahead.side_by_side(opened, [shard.embeddings for shard in shards])
        self._kept: dict[tuple[int, int], Block] = {}
        self._kept_bytes = 0
        self._chunks = [shard.chunks for shard in shards]
        self.documents = Documents([shard.chunks for shard in shards], [shard.chunk2seq for shard in shards])
        self.offsets = np.concatenate(([0], np.cumsum([len(reader) for reader in self.embeddings]))).astype(np.int64)
        self.total = int(self.offsets[-1])
        if self.total > MAX_CHUNKS:
            raise BadInputError(f"the index spec names {self.total:,} chunks, more than {MAX_CHUNKS:,}", "split it")

    @cached_property
    def chunks(self) -> list[NpyReader]:
        """Their tokens, which only filters and cards read."""
        return read_ahead.side_by_side(partial(open_npy, ndim=2, kind="u"), self._chunks)

    def blocks(self, wanted: NDArray[np.int64] | None) -> Iterator[Block]:
        return self.blocks_of(range(len(self.embeddings)))(wanted)

    def blocks_of(self, positions: Iterable[int]) -> Blocks:
        """The blocks of some shards, ``positions`` ascending."""
        cuts = self._cuts(positions)

        def ranges(wanted: NDArray[np.int64] | None) -> Iterator[tuple[tuple[int, int], int, int]]:
            if wanted is None:
                yield from ((cut, *cut) for cut in cuts)
                return
            for cut, of in _wanted(cuts, wanted):
                yield cut, int(wanted[of.start]), int(wanted[of.stop - 1]) + 1

        return lambda wanted: read_ahead.ahead(partial(self._block, *of) for of in ranges(wanted))

    def _cuts(self, positions: Iterable[int]) -> list[tuple[int, int]]:
        """(first id, end) of the blocks: BLOCK_ROWS of a shard, or as many small shards that follow one another."""
        cuts: list[tuple[int, int]] = []
        for start, end in ((int(self.offsets[at]), int(self.offsets[at + 1])) for at in positions):
            if cuts and start < end and cuts[-1][1] == start and end - cuts[-1][0] <= BLOCK_ROWS:
                cuts[-1] = cuts[-1][0], end
            else:
                cuts += [(first, min(first + BLOCK_ROWS, end)) for first in range(start, end, BLOCK_ROWS)]
        return cuts

    def ids_of(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Global ids of the chunks of some shards."""
        return np.concatenate([np.arange(self.offsets[at], self.offsets[at + 1]) for at in positions])

    def tokens(self, ids: NDArray[np.int64]) -> filters.Tokens:
        """Tokens of the chunks ``ids`` ``[n]``, in any order: ``[n, chunk_size]``."""
        dtype = np.result_type(*{reader.dtype for reader in self.chunks})
        return self._gather(ids, np.empty((len(ids), self.chunks[0].shape[1]), dtype), lambda i: self.chunks[i].rows)

    def owners(self, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Identity of the documents of the chunks ``ids`` ``[n]``, in any order."""
        return self._gather(ids, np.empty(len(ids), np.uint64), lambda i: partial(self.documents.rows, i))

    def _gather(
        self, ids: NDArray[np.int64], out: NDArray[Any], rows_of: Callable[[int], Callable[[int, int], NDArray[Any]]]
    ) -> NDArray[Any]:
        """Rows ``ids`` into ``out``; each block is read once."""
        order = np.argsort(ids, kind="stable")
        ascending = ids[order]
        for _, of in _wanted(self._cuts(range(len(self.embeddings))), ascending):
            local = ascending[of]
            first = int(local[0])
            out[order[of]] = self._rows(first, int(local[-1]) + 1, rows_of)[local - first]
        return out

    def _block(self, cut: tuple[int, int], first: int, end: int) -> Block:
        """Rows ``first:end`` of the block ``cut``, by global id."""
        if np.searchsorted(self.offsets, cut[0], side="right") == np.searchsorted(self.offsets, cut[1]):
            return self._read(first, end)  # It lies in one shard.
        whole = self._kept.get(cut)
        if whole is None:
            whole = self._read(*cut)
            if self._kept_bytes + whole.vectors.nbytes <= KEPT_BYTES:
                self._kept[cut] = whole
                self._kept_bytes += whole.vectors.nbytes
        rows = slice(first - cut[0], end - cut[0])
        return Block(first, whole.vectors[rows], whole.documents[rows])

    def _read(self, first: int, end: int) -> Block:
        vectors = self._rows(first, end, lambda i: self.embeddings[i].rows).astype(np.float16)
        return Block(first, vectors, self._rows(first, end, lambda i: partial(self.documents.rows, i)))

    def _rows(self, first: int, end: int, rows_of: Callable[[int], Callable[[int, int], NDArray[Any]]]) -> NDArray[Any]:
        """Rows of the chunks ``first:end``, by global id, from all shards that they lie in."""
        at = range(int(np.searchsorted(self.offsets, first, side="right")) - 1, int(np.searchsorted(self.offsets, end)))

        def part(position: int) -> NDArray[Any]:
            offset = int(self.offsets[position])
            return rows_of(position)(max(first - offset, 0), min(end, int(self.offsets[position + 1])) - offset)

        parts = [part(i) for i in at] if len(at) <= FEW_PARTS else read_ahead.side_by_side(part, at)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _wanted(cuts: Sequence[tuple[int, int]], ids: NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], slice]]:
    """Of each block that holds any of the (ascending) ``ids``: which of them.

    Of a block that few ask for, only the part between the first and the last of them need be read.
    """
    bounds = np.searchsorted(ids, np.array(cuts, np.int64).reshape(-1, 2))
    for cut, (low, high) in zip(cuts, bounds.tolist(), strict=True):
        if low < high:
            yield cut, slice(low, high)


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
    """Rows that ask for neighbours.

    ``documents``: who says to which document each row belongs, where they are shard ``position``; None: nobody knows.
    ``tokens``: where they lie, only if a filter compares texts.
    """

    embeddings: NpyReader
    documents: Documents | None
    position: int = 0
    tokens: NpyReader | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, start: int, stop: int) -> Queries:
        vectors = self.embeddings.rows(start, stop).astype(np.float16)
        tokens = self.tokens.rows(start, stop) if self.tokens else None
        if self.documents is None:
            unknown = UNKNOWN_DOCUMENT + np.arange(start, start + len(vectors), dtype=np.uint64)
            return Queries(vectors, unknown, tokens)
        return Queries(vectors, self.documents.rows(self.position, start, stop), tokens)


def query_shard(chunks: IndexedChunks, position: int, with_tokens: bool) -> QueryShard:
    """The shard at ``position`` of the index as queries."""
    tokens = chunks.chunks[position] if with_tokens else None
    return QueryShard(chunks.embeddings[position], chunks.documents, position, tokens)


def other_shard(shard: IndexShard, chunks: IndexedChunks, with_tokens: bool) -> QueryShard:
    """A shard that the index does not hold, as queries. Its documents are known only if those of the index are by
    content: then a copy of one that is there is recognised."""
    documents = Documents([shard.chunks], [shard.chunk2seq])
    known = documents.by_content and chunks.documents.by_content
    tokens = open_npy(shard.chunks, ndim=2, kind="u") if with_tokens else None
    return QueryShard(open_npy(shard.embeddings, ndim=2, kind="f"), documents if known else None, tokens=tokens)


def query_shards(plan: Plan, split: Split, chunks: IndexedChunks, with_tokens: bool) -> dict[str, QueryShard]:
    """All that query the index of ``split``, by name and in the plan's order. ``chunks``: what that index holds."""
    places = {shard.name: at for at, shard in enumerate(plan.indexed(split))}
    return {
        shard.name: query_shard(chunks, places[shard.name], with_tokens)
        if shard.indexed
        else other_shard(paths.index_shard(plan, shard.name), chunks, with_tokens)
        for shard in plan.queried(split)
    }


def sample(shards: Sequence[QueryShard], count: int, seed: int) -> Queries:
    """A uniform sample without replacement over the rows of all ``shards``."""
    drawn = sample_rows(np.array([len(s) for s in shards], np.int64), count, seed)
    asked = [of for of in zip(shards, drawn, strict=True) if len(of[1])] or [(shards[0], drawn[0])]
    return join(read_ahead.side_by_side(lambda of: take(*of), asked, read_ahead.READERS))


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
