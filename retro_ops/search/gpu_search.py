"""Exact search of probed lists on one GPU or several, on the embeddings themselves.

Half-precision products of whole vectors are what tensor cores do fastest, so no codes are used:

1. Queries are sorted by the lists that they probe, so each list is multiplied with all its queries at once.
2. Of each group of vectors the best score is kept, and the members of the best groups are scored exactly, as in
   ``exact``.
3. A row is done once its last neighbour is nearer than any vector of a group that was left out can be, given the
   rounding error of a half-precision score. Otherwise more groups are taken. See ``gpu_tiles.nearest``.

So the result is that of an exact search of the probed lists. It depends neither on rounding nor on how vectors and
queries are divided: each GPU holds all vectors and takes a share of the queries, or, if there are too many vectors,
holds a share of them and takes all queries.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, columns, on, query_operand, scores, vector_operand
from retro_ops.index.faiss_index import Lists
from retro_ops.search import gpu_tiles
from retro_ops.search.exact import Keys, smallest, unpack
from retro_ops.search.filters import REASONS, SAME_DOCUMENT
from retro_ops.search.reranking import NONE_REMOVED, Blocks, Found, Queries, Removed, joined

PROBE_ROWS = 4096
"""Queries whose lists are chosen at a time, the last batch padded: with one shape no row depends on the others."""

MOST_ROWS = 2**16
MOST_PAIRS = 2**22
"""Queries at a time, and pairs of a query and a probed list."""

MOST_BEST = 2**30
"""Best scores of groups (halves) that are held at a time."""

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
    cuts = [count * number // parts for number in range(parts + 1)]
    return [Span(cuts[i], cuts[i + 1], devices[i % len(devices)]) for i in range(parts)]


def capacity(device: str) -> int:
    """Bytes that vectors may take on ``device``."""
    import torch

    free = int(torch.cuda.mem_get_info(device)[0])
    return free - min(WORKSPACE_BYTES, free // 2)


class Scan:
    """Vectors on devices: kept there if they fit, else read again, part by part, for each call."""

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

    def nearest(self, queries: Queries, k: int, nprobe: int) -> Found:
        """The ``k`` nearest chunks of other documents in the ``nprobe`` nearest lists, and the number of nearer chunks
        of the query's own document."""

        def of_part(part: gpu_tiles.Part, device: str, share: slice) -> tuple[Keys, Removed]:
            keys, refused = [], [NONE_REMOVED]
            for rows, vectors, probes in self._batches(queries.vectors, share, nprobe, part, device):
                counts = on(device, np.zeros(len(vectors), np.int64))

                def own(of_rows: Tensor, of_keys: Tensor, first: int = rows.start, counts: Tensor = counts) -> None:
                    if self._whole:  # No other part can have nearer neighbours, so these are counted on the device.
                        counts.add_(of_rows.bincount(minlength=len(counts)))
                    else:
                        found = Removed.of_same_document(first + of_rows.cpu().numpy(), gpu_tiles.unsigned(of_keys))
                        refused.append(found)

                keys.append(gpu_tiles.nearest(part, vectors, on(device, documents[rows]), probes, k, own))
                removed[rows, SAME_DOCUMENT - 1] += counts.cpu().numpy()
            return np.concatenate(keys), joined(refused)

        if not len(queries):
            return Found.nothing(0, k)
        documents = queries.documents.view(np.int64)
        removed = np.zeros((len(queries), len(REASONS)), np.int64)
        found = self._over_parts(len(queries), of_part)
        best = self._best([keys for keys, _ in found], k)
        for _, refused in found:
            removed += refused.nearer_than(best).counts(len(best))
        return Found(best, removed)

    def coarse(
        self, vectors: NDArray[np.float32], width: int, nprobe: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Distances and ids ``[m, width]`` of the nearest chunks of any document; a ``faiss_search.Coarse``."""
        halves = vectors.astype(np.float16)

        def of_part(part: gpu_tiles.Part, device: str, share: slice) -> Keys:
            batches = self._batches(halves, share, nprobe, part, device)
            return np.concatenate([gpu_tiles.widest(part, of, probes, width) for _, of, probes in batches])

        ids, distances = unpack(self._best(self._over_parts(len(vectors), of_part), width))
        return distances, ids

    def _over_parts(self, rows: int, of_part: Callable[[gpu_tiles.Part, str, slice], Any]) -> list[Any]:
        """Results of ``of_part`` for each part and the share of ``rows`` queries that its device takes."""
        count = min(len(self._devices), rows)
        shares = [slice(rows * number // count, rows * (number + 1) // count) for number in range(count)]

        def search(device: str, share: slice) -> list[Any]:
            spans_of = [span for span in self._divided if span.device == device]
            return [of_part(self._parts.get(span) or self._load(span), device, share) for span in spans_of]

        with ThreadPoolExecutor(len(self._devices)) as pool:
            found = pool.map(search, self._devices, shares if self._whole else [slice(0, rows)] * len(self._devices))
            return [part for of_device in found for part in of_device]

    def _best(self, keys: list[Keys], count: int) -> Keys:
        """The ``count`` smallest keys of each row, over all parts: ``[m, count]``."""
        return smallest(np.concatenate(keys, axis=0 if self._whole else 1), count)

    def _batches(
        self, vectors: NDArray[np.float16], share: slice, nprobe: int, part: gpu_tiles.Part, device: str
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows, vectors and probed lists (None: all) of as many queries of ``share`` at a time as fit on the device."""
        lists = len(self._lists.centroids)
        every = nprobe >= lists
        probed_tiles = part.vectors.shape[0] * (1 if every else nprobe / lists)
        rows = int(
            min(MOST_ROWS, MOST_PAIRS // (1 if every else nprobe), MOST_BEST / (probed_tiles * gpu_tiles.GROUPS))
        )
        rows = max(PROBE_ROWS, rows // PROBE_ROWS * PROBE_ROWS) if not every else max(1, rows)
        for start in range(share.start, share.stop, rows):
            of = slice(start, min(start + rows, share.stop))
            queries = on(device, vectors[of])
            yield of, queries, None if every else self._probes(queries, nprobe, device)

    def _probes(self, queries: Tensor, nprobe: int, device: str) -> Tensor:
        """The nearest lists of each query, int64 ``[m, nprobe]``."""
        import torch

        project = self._lists.project
        probes = []
        for block in queries.split(PROBE_ROWS):
            filled = torch.cat((block, block.new_zeros((PROBE_ROWS - len(block), block.shape[1]))))
            seen_by_lists = on(device, project(filled.float().cpu().numpy())) if project else filled
            probes.append(
                scores(query_operand(seen_by_lists), self._centroids[device]).topk(nprobe, dim=1).indices[: len(block)]
            )
        return torch.cat(probes)
