"""Exact search of probed lists on one GPU or several, on the embeddings themselves.

Half-precision products of whole vectors are what tensor cores do fastest, so no codes are used:

1. Queries are sorted by the lists that they probe, so each list is multiplied with all its queries at once.
2. Of each group of vectors the best score is kept, and the members of the best groups are scored exactly, as in
   ``exact``.
3. A row is done once its last neighbour is nearer than any vector of a group that was left out can be, given the
   rounding error of a half-precision score. Otherwise more groups are taken. See ``gpu_tiles.nearest``.

So the result is that of an exact search of the probed lists. It depends neither on rounding nor on how vectors and
queries are divided: each GPU holds all vectors and takes a share of the queries, or, if there are too many vectors,
a share of them and all queries. A share that is more than a GPU holds is read part by part; all queries are read again
for each part, so the vectors are read once, however many queries there are.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, columns, on, query_operand, scores, vector_operand
from retro_ops.index.faiss_index import Lists
from retro_ops.plan.grid import bounds
from retro_ops.search import gpu_tiles
from retro_ops.search.exact import NOTHING, Keys, smallest
from retro_ops.search.filters import SAME_DOCUMENT
from retro_ops.search.hits import (
    NONE_REMOVED,
    Blocks,
    Found,
    Queries,
    QueryRows,
    Removed,
    joined,
    nearest_of_both,
)

PROBE_ROWS = 4096
"""Queries whose lists are chosen at a time, the last batch padded: with one shape no row depends on the others."""

MOST_ROWS = 2**16
MOST_PAIRS = 2**22
"""Queries at a time, and pairs of a query and a probed list."""

MOST_BEST = 2**30
"""Best scores of groups (halves) that are held at a time."""

LIST_RANKS = 2**28
"""Scores of lists that are compared at a time."""

OWN_HITS = 2**22
"""Hits of the queries' own documents that are collected before the farthest of them are dropped."""

WORKSPACE_BYTES = 8 * 2**30
"""Memory that these constants take on a device beside the vectors, with some to spare."""


@dataclass(frozen=True)
class Span:
    """Vectors ``first:end``, in the order of ids, on ``device``."""

    first: int
    end: int
    device: str


def spans(lists: Lists, dimension: int, devices: Sequence[str], capacity: int) -> list[Span]:
    """All vectors on every device if ``capacity`` bytes hold them, else even shares: one for each device, or several
    that a device holds one after the other."""
    count = len(lists.ids)
    row_bytes = columns(dimension) * 2 + 3 * 8
    # Each list may end in a tile that is nearly empty.
    most = max(1, capacity // row_bytes - len(lists.centroids) * (gpu_tiles.TILE - 1))
    if count <= most:
        return [Span(0, count, device) for device in devices]
    parts = max(len(devices), -(-count // most))
    parts = min(-(-parts // len(devices)) * len(devices), count)
    return [Span(*bounds(count, parts, number), devices[number % len(devices)]) for number in range(parts)]


def capacity(device: str) -> int:
    """Bytes that vectors may take on ``device``."""
    import torch

    free = int(torch.cuda.mem_get_info(device)[0])
    return free - min(WORKSPACE_BYTES, free // 2)


class Scan:
    """Vectors on devices: kept there if they fit, else read again, part by part, for each call. ``WholeVectors``."""

    def __init__(self, lists: Lists, blocks: Blocks, divided: Sequence[Span]) -> None:
        self._lists, self._blocks = lists, blocks
        self._divided = divided
        self._devices = sorted({span.device for span in divided})
        self._whole = all((span.first, span.end) == (0, len(lists.ids)) for span in divided)
        self._parts: dict[Span, gpu_tiles.Part] = {}
        if self._whole:
            loaded = self._load(divided[0])
            self._parts = {span: loaded.to(span.device) for span in divided}
        elif len(divided) == len(self._devices):
            self._parts = {span: self._load(span) for span in divided}
        self._centroids = {
            device: vector_operand(on(device, lists.centroids)) for device in self._devices if len(lists.centroids) > 1
        }

    def _load(self, span: Span) -> gpu_tiles.Part:
        of, ids = self._lists.of[span.first : span.end], self._lists.ids[span.first : span.end]
        return gpu_tiles.load(of, ids, len(self._lists.centroids), self._blocks, span.device)

    def nearest(self, queries: QueryRows, k: int, nprobe: int) -> Found:
        if not self._whole:
            keys, own = self.nearest_and_own(queries, k, nprobe)
            return Found(keys, own.counts(len(queries)))
        # No other part can have nearer neighbours if a device holds all vectors, so own hits are only counted.
        found = Found.nothing(len(queries), k)
        found.keys[:] = self._nearest(queries, k, nprobe, [_OwnCounts(found.removed) for _ in self._devices])
        return found

    def nearest_and_own(self, queries: QueryRows, k: int, nprobe: int) -> tuple[Keys, Removed]:
        """The keys of ``nearest``, and the hits of the row's own document that are nearer than the last of them."""
        collectors = [_OwnHits(None) for _ in self._devices]
        keys = self._nearest(queries, k, nprobe, collectors)
        return keys, joined([own.hits() for own in collectors]).nearer_than(keys)

    def hits(self, queries: QueryRows, width: int, nprobe: int) -> tuple[Keys, Removed]:
        collectors = [_OwnHits(width) for _ in self._devices]
        keys = self._nearest(queries, width, nprobe, collectors)
        return nearest_of_both(keys, joined([own.hits() for own in collectors]))

    def list_ranks(
        self, vectors: NDArray[np.float16], rows: NDArray[np.int64], ids: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        import torch

        ranks = np.zeros(len(ids), np.int64)
        if len(self._lists.centroids) == 1:
            return ranks
        device = self._devices[0]
        of = self._lists.of[np.searchsorted(self._lists.ids, ids)]
        for start in range(0, len(vectors), PROBE_ROWS):
            found = self._list_scores(on(device, vectors[start : start + PROBE_ROWS]), device)
            here = np.flatnonzero((rows >= start) & (rows < start + PROBE_ROWS))
            for some in np.array_split(here, 1 + len(here) * found.shape[1] // LIST_RANKS):
                of_rows = found[torch.from_numpy(rows[some] - start).to(device)]
                own = of_rows.gather(1, on(device, of[some]).long()[:, None])
                ranks[some] = (of_rows > own).sum(dim=1).cpu().numpy()
        return ranks

    def _nearest(self, queries: QueryRows, k: int, nprobe: int, collectors: Sequence["_OwnCounts | _OwnHits"]) -> Keys:
        """Keys ``[m, k]`` of the nearest chunks of other documents. Each device has its collector of own hits."""
        if not len(queries):
            return np.full((0, k), NOTHING)
        count = min(len(self._devices), len(queries)) if self._whole else 1
        shares = [slice(*bounds(len(queries), count, number)) for number in range(count)]

        def search(device: str, share: slice, own: "_OwnCounts | _OwnHits") -> Keys:
            best = np.full((share.stop - share.start, k), NOTHING)
            for number, span in enumerate(span for span in self._divided if span.device == device):
                part = self._parts.get(span) or self._load(span)
                for start, some in self._batches(queries, share, nprobe, part):
                    vectors = on(device, some.vectors)
                    documents = on(device, some.documents.view(np.int64))
                    probes = None if nprobe >= len(self._lists.centroids) else self._probes(vectors, nprobe, device)
                    keys = gpu_tiles.nearest(part, vectors, documents, probes, k, partial(own.add, start))
                    rows = slice(start - share.start, start - share.start + len(keys))
                    best[rows] = smallest(np.concatenate((best[rows], keys), axis=1), k) if number else keys
                own.end_of_part(share.start, best)
            return best

        devices = self._devices[:count] if self._whole else self._devices
        with ThreadPoolExecutor(len(devices)) as pool:
            found = list(pool.map(search, devices, shares if self._whole else shares * len(devices), collectors))
        return np.concatenate(found) if self._whole else smallest(np.concatenate(found, axis=1), k)

    def _batches(
        self, queries: QueryRows, share: slice, nprobe: int, part: gpu_tiles.Part
    ) -> Iterator[tuple[int, Queries]]:
        """First rows and queries of ``share``, as many at a time as fit on the device."""
        lists = len(self._lists.centroids)
        every = nprobe >= lists
        probed_tiles = part.vectors.shape[0] * (1 if every else nprobe / lists)
        rows = int(
            min(MOST_ROWS, MOST_PAIRS // (1 if every else nprobe), MOST_BEST / (probed_tiles * gpu_tiles.GROUPS))
        )
        rows = max(PROBE_ROWS, rows // PROBE_ROWS * PROBE_ROWS) if not every else max(1, rows)
        starts = range(share.start, share.stop, rows)
        return zip(starts, queries.each((start, min(start + rows, share.stop)) for start in starts), strict=True)

    def _probes(self, queries: Tensor, nprobe: int, device: str) -> Tensor:
        """The nearest lists of each query, int64 ``[m, nprobe]``."""
        import torch

        blocks = queries.split(PROBE_ROWS)
        return torch.cat([self._list_scores(block, device).topk(nprobe, dim=1).indices for block in blocks])

    def _list_scores(self, block: Tensor, device: str) -> Tensor:
        """Scores of up to PROBE_ROWS queries with the centroids of all lists: half ``[m, lists]``."""
        import torch

        project = self._lists.project
        filled = torch.cat((block, block.new_zeros((PROBE_ROWS - len(block), block.shape[1]))))
        seen_by_lists = on(device, project(filled.float().cpu().numpy())) if project else filled
        return scores(query_operand(seen_by_lists), self._centroids[device])[: len(block)]


class _OwnCounts:
    """Counts the hits of the queries' own documents in ``removed`` int64 ``[m, reasons]``, on their device."""

    def __init__(self, removed: NDArray[np.int64]) -> None:
        self._counts = removed[:, SAME_DOCUMENT - 1]

    def add(self, start: int, rows: Tensor, keys: Tensor) -> None:
        """``rows`` are counted from row ``start``."""
        if len(rows):
            counts = rows.bincount().cpu().numpy()
            self._counts[start : start + len(counts)] += counts

    def end_of_part(self, first: int, best: Keys) -> None:
        """Nothing to do: there is one part."""


class _OwnHits:
    """Collects the hits of the queries' own documents. ``most`` of each row are enough; None for all of them."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._hits, self._size, self._kept = [NONE_REMOVED], 0, 0

    def add(self, start: int, rows: Tensor, keys: Tensor) -> None:
        """``rows`` are counted from row ``start``."""
        self._hits.append(Removed.of_same_document(start + rows.cpu().numpy(), gpu_tiles.unsigned(keys)))
        self._size += len(rows)
        if self._most is not None and self._size > 2 * self._kept + OWN_HITS:
            self._keep(joined(self._hits).nearest(self._most))

    def end_of_part(self, first: int, best: Keys) -> None:
        """``best`` ``[m, k]``: the nearest of other documents so far, of rows ``first:first + m``. Own hits beyond them
        will never count."""
        self._keep(joined(self._hits).nearer_than(best, first))

    def hits(self) -> Removed:
        return joined(self._hits)

    def _keep(self, hits: Removed) -> None:
        self._hits, self._size, self._kept = [hits], len(hits), len(hits)
