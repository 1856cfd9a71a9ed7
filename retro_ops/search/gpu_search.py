"""Exact search of probed lists on one GPU or several, on the embeddings themselves.

Half-precision products of whole vectors are what tensor cores do fastest, so no codes are used:

1. Queries are sorted by the lists that they probe, so each list is multiplied with all its queries at once.
2. Of each group of vectors the best score is kept, and the members of the best groups are scored exactly, as in
   ``exact``.
3. A row is done once its last neighbour is nearer than any vector of a group that was left out can be, given the
   rounding error of a half-precision score. Otherwise more groups are taken. See ``gpu_nearest.nearest``.

So the result is that of an exact search of the probed lists. It depends neither on rounding nor on how vectors and
queries are divided: each GPU holds all vectors and takes a share of the queries, or, if there are too many vectors,
a share of them and all queries. A share that is more than a GPU holds is read part by part; all queries are read again
for each part, so the vectors are read once, however many queries there are. From one part to the next are kept the
lists that each query probes, and its neighbours so far: of the next part only those groups matter that may hold a
nearer vector.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, on, query_operand, scores, vector_operand
from retro_ops.compute.workers import in_threads
from retro_ops.index.faiss_index import Lists
from retro_ops.plan.grid import bounds, vector_bytes
from retro_ops.search import gpu_nearest, gpu_part
from retro_ops.search.exact import NOTHING, Keys, smallest
from retro_ops.search.gpu_best import MOST_BEST
from retro_ops.search.hits import Blocks, Found, Queries, QueryRows, Removed, joined, nearest_of_both
from retro_ops.search.own_hits import Collector, OwnCounts, OwnHits

PROBE_ROWS = 4096
"""Queries whose lists are chosen at a time, the last batch padded: with one shape no row depends on the others."""

MOST_ROWS = 2**17
MOST_PAIRS = 2**22
"""Queries at a time, and pairs of a query and a probed list."""

READ_ROWS = 2**13
"""Queries read from the store at a time."""

LISTS_OF_A_GROUP = 32
"""Lists of which the best is compared first where the nearest lists are chosen."""

LIST_RANKS = 2**28
"""Scores of lists that are compared at a time."""

WORKSPACE_BYTES = 4 * 2**30
WORKSPACE_SHARE = 3 / 8
"""Memory that these constants, and those of ``gpu_best`` and ``gpu_nearest``, take on a device beside the vectors; a
smaller share of a small device, where parts are smaller too."""


@dataclass(frozen=True)
class Span:
    """Vectors ``first:end``, in the order of ids, on ``device``."""

    first: int
    end: int
    device: str


def spans(lists: Lists, dimension: int, devices: Sequence[str], capacity: int) -> list[Span]:
    """All vectors on every device if ``capacity`` bytes hold them, else even shares: one for each device, or several
    that a device holds one after the other."""
    count, most = len(lists.ids), max(1, capacity // vector_bytes(dimension))
    if gpu_part.count_slots(lists.of, len(lists.centroids)) <= most:
        return [Span(0, count, device) for device in devices]
    parts = max(len(devices), -(-count // most))
    while True:
        parts = min(-(-parts // len(devices)) * len(devices), count)
        cut = [bounds(count, parts, number) for number in range(parts)]
        slots = max(gpu_part.count_slots(lists.of[first:end], len(lists.centroids)) for first, end in cut)
        if slots <= most or parts == count:
            return [Span(*of, devices[number % len(devices)]) for number, of in enumerate(cut)]
        parts = max(parts + 1, parts * slots // most)


def capacity(device: str) -> int:
    """Bytes that vectors may take on ``device``."""
    import torch

    free = int(torch.cuda.mem_get_info(device)[0])
    return free - min(WORKSPACE_BYTES, int(free * WORKSPACE_SHARE))


class Scan:
    """Vectors on devices: kept there if they fit, else read again, part by part, for each call. ``WholeVectors``."""

    def __init__(self, lists: Lists, blocks: Blocks, divided: Sequence[Span]) -> None:
        self._lists, self._blocks = lists, blocks
        self._divided = divided
        self._devices = sorted({span.device for span in divided})
        self._whole = all((span.first, span.end) == (0, len(lists.ids)) for span in divided)
        self._centroids = {
            device: vector_operand(on(device, lists.centroids)) for device in self._devices if len(lists.centroids) > 1
        }

    @cached_property
    def _kept(self) -> dict[Span, gpu_part.Part]:
        """The parts that stay on the devices, loaded for the first search."""
        if self._whole:
            loaded = self._load(self._divided[0])
            return {span: loaded.to(span.device) for span in self._divided}
        if len(self._divided) == len(self._devices):
            return {span: self._load(span) for span in self._divided}
        return {}

    def _load(self, span: Span) -> gpu_part.Part:
        of, ids = self._lists.of[span.first : span.end], self._lists.ids[span.first : span.end]
        return gpu_part.load(of, ids, len(self._lists.centroids), self._blocks, span.device)

    def nearest(self, queries: QueryRows, k: int, nprobe: int) -> Found:
        if not self._whole:
            keys, own = self.nearest_and_own(queries, k, nprobe)
            return Found(keys, own.counts(len(queries)))
        # No other part can have nearer neighbours if a device holds all vectors, so own hits are only counted.
        found = Found.nothing(len(queries), k)
        found.keys[:] = self._nearest(queries, k, nprobe, [OwnCounts(found.removed) for _ in self._devices])
        return found

    def nearest_and_own(self, queries: QueryRows, k: int, nprobe: int) -> tuple[Keys, Removed]:
        """The keys of ``nearest``, and the hits of the row's own document that are nearer than the last of them."""
        collectors = [OwnHits(None) for _ in self._devices]
        keys = self._nearest(queries, k, nprobe, collectors)
        return keys, joined([own.hits() for own in collectors]).nearer_than(keys)

    def hits(self, queries: QueryRows, width: int, nprobe: int) -> tuple[Keys, Removed]:
        collectors = [OwnHits(width) for _ in self._devices]
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

    def _nearest(self, queries: QueryRows, k: int, nprobe: int, collectors: Sequence[Collector]) -> Keys:
        """Keys ``[m, k]`` of the nearest chunks of other documents. Each device has its collector of own hits."""
        if not len(queries):
            return np.full((0, k), NOTHING)
        count = min(len(self._devices), len(queries)) if self._whole else 1
        shares = [slice(*bounds(len(queries), count, number)) for number in range(count)]
        kept = self._kept

        def search(device: str, share: slice, own: Collector) -> Keys:
            best = np.full((share.stop - share.start, k), NOTHING)
            divided = [span for span in self._divided if span.device == device]
            probed = _Probed(partial(self._probes, nprobe=nprobe, device=device), keep=len(divided) > 1)
            for number, span in enumerate(divided):
                part = kept.get(span) or self._load(span)
                for start, vectors, documents in self._batches(queries, share, nprobe, device):
                    probes = None if nprobe >= len(self._lists.centroids) else probed.lists_of(start, vectors)
                    rows = slice(start - share.start, start - share.start + len(vectors))
                    known = best[rows] if number else None
                    add = partial(own.add, start)
                    best[rows] = gpu_nearest.nearest(part, vectors, documents, probes, k, add, known)
                own.end_of_part(share.start, best)
                del part  # Before the next one takes its memory.
            return best

        devices = self._devices[:count] if self._whole else self._devices
        with ThreadPoolExecutor(len(devices)) as pool:
            found = list(pool.map(search, devices, shares if self._whole else shares * len(devices), collectors))
        return np.concatenate(found) if self._whole else smallest(np.concatenate(found, axis=1), k)

    def _batches(
        self, queries: QueryRows, share: slice, nprobe: int, device: str
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of ``share``, as many queries at a time as fit on the device: for each part the same. Yields the first row,
        the vectors half ``[m, d]`` and the documents int64 ``[m]``."""
        import torch

        rows = self._batch_rows(nprobe)
        cuts = [
            range(start, min(start + rows, share.stop), READ_ROWS) for start in range(share.start, share.stop, rows)
        ]
        read = queries.each((start, min(start + READ_ROWS, cut.stop)) for cut in cuts for start in cut)
        copied = in_threads(partial(_copied, device), read)
        for cut in cuts:
            vectors, documents = zip(*(next(copied) for _ in cut), strict=True)
            yield cut.start, torch.cat(vectors), torch.cat(documents)

    def _batch_rows(self, nprobe: int) -> int:
        lists = len(self._lists.centroids)
        groups = max(span.end - span.first for span in self._divided) / gpu_part.GROUP + lists
        if nprobe >= lists:
            return max(1, int(min(MOST_ROWS, MOST_BEST / groups)))
        rows = int(min(MOST_ROWS, MOST_PAIRS // nprobe, MOST_BEST / (groups * nprobe / lists)))
        return max(PROBE_ROWS, rows // PROBE_ROWS * PROBE_ROWS)

    def _probes(self, queries: Tensor, nprobe: int, device: str) -> Tensor:
        """The nearest lists of each query, int64 ``[m, nprobe]``."""
        import torch

        blocks = queries.split(PROBE_ROWS)
        return torch.cat([_largest(self._list_scores(block, device), nprobe)[: len(block)] for block in blocks])

    def _list_scores(self, block: Tensor, device: str) -> Tensor:
        """Scores of up to PROBE_ROWS queries with the centroids of all lists: half ``[PROBE_ROWS, lists]``, those of
        the queries first."""
        import torch

        project = self._lists.project
        filled = torch.cat((block, block.new_zeros((PROBE_ROWS - len(block), block.shape[1]))))
        seen_by_lists = on(device, project(filled.float().cpu().numpy())) if project else filled
        return scores(query_operand(seen_by_lists), self._centroids[device])


def _copied(device: str, queries: Queries) -> tuple[Tensor, Tensor]:
    return on(device, queries.vectors), on(device, queries.documents.view(np.int64))


class _Probed:
    """The lists that each query probes, chosen by ``choose``. With ``keep`` they stay in memory for the next part."""

    def __init__(self, choose: Callable[[Tensor], Tensor], keep: bool) -> None:
        self._choose, self._keep = choose, keep
        self._kept: dict[int, NDArray[np.int32]] = {}

    def lists_of(self, start: int, vectors: Tensor) -> Tensor:
        """Int64 ``[m, nprobe]``: the lists of the queries ``vectors`` half ``[m, d]``, a batch that begins at row
        ``start``."""
        if start in self._kept:
            return on(str(vectors.device), self._kept[start]).long()
        lists = self._choose(vectors)
        if self._keep:
            self._kept[start] = lists.int().cpu().numpy()
        return lists


def _largest(values: Tensor, count: int) -> Tensor:
    """Columns of the ``count`` largest of each row of ``values`` ``[m, n]``: int64 ``[m, count]``.

    1. Columns whose numbers have the same remainder are a group, LISTS_OF_A_GROUP of them: take the largest of each.
    2. The ``count`` groups in which it is largest hold the ``count`` largest values: only these are compared.

    A GPU reads all values several times to choose among them, and here only once.
    """
    if values.shape[1] % LISTS_OF_A_GROUP or values.shape[1] < 4 * count * LISTS_OF_A_GROUP:
        return values.topk(count, dim=1).indices
    grouped = values.unflatten(1, (LISTS_OF_A_GROUP, -1))
    groups = grouped.amax(dim=1).topk(count, dim=1).indices
    members = grouped.gather(2, groups[:, None].expand(-1, LISTS_OF_A_GROUP, -1)).flatten(1)
    at = members.topk(count, dim=1).indices
    return at // count * grouped.shape[2] + groups.gather(1, at % count)
