"""The exact nearest vectors of the probed lists, from the embeddings themselves on one device or several.

No codes: half-precision products of whole vectors are what tensor cores do fastest. Queries are sorted by the lists
that they probe, so each list is multiplied with all its queries at once. Of each GROUP of vectors the best score is
kept; the members of the best groups are scored exactly, as core/exact.py does. A row is done once its last neighbour
is nearer than whatever a group that was left out can hold, given how wrong a score in half precision can be; else more
groups are taken. So the result is that of exact search in the probed lists, and depends neither on rounding nor on how
vectors or queries were divided.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.core.exact import NOTHING, Keys, smallest, unpack
from retro_ops.core.nearness import ROUNDING, Tensor, answering, asking, columns, scores
from retro_ops.core.search import Blocks, Found, Queries, Refused

TILE = 64
"""Vectors of one list that are multiplied at a time; each list is padded to whole tiles."""

GROUP = 16
"""Vectors of which the best score is kept. Those of a list lie in the order of ids, so a document's are together."""

GROUPS = TILE // GROUP

FIRST_GROUPS = 16
"""Groups whose members are scored exactly at first: most rows need no more."""

WIDEN = 4

QUERY_TILES = (16, 512)
"""Fewest and most queries that are multiplied with a tile at a time."""

PROBE_ROWS = 4096
"""Queries whose lists are chosen at a time, the last filled up: one shape, so that no row depends on the others."""

MOST_ROWS = 2**16
MOST_PAIRS = 2**22
"""Queries, and pairs of query and probed list, at a time."""

MOST_BEST = 2**30
"""Best scores of groups held at a time, half each."""

ITEM_ROWS = 2**20
"""Vectors and queries that are gathered for products at a time: 800 MB each at d = 384."""

EXACT_NUMBERS = 2**28
"""Numbers of candidates that are scored exactly at a time, float64 each."""

WORKSPACE_BYTES = 8 * 2**30
"""What the above take on a device beside the vectors, with room to spare."""

NONE = 2**63 - 1
"""The key after all others, in torch's signed integers."""


@dataclass(frozen=True)
class Lists:
    """The lists of an index. ``centroids`` float32 ``[lists, e]``; ``of`` int32 ``[n]``: the list of each vector;
    ``ids`` int64 ``[n]``, ascending: their global ids. ``project``: queries float32 ``[m, d]`` -> ``[m, e]``, for an
    index that transforms its vectors; else None."""

    centroids: NDArray[np.float32]
    of: NDArray[np.int32]
    ids: NDArray[np.int64]
    project: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None


@dataclass(frozen=True)
class Part:
    """Vectors on one device, list by list. ``first_tiles`` int64 ``[lists + 1]``; ``vectors`` half ``[tiles, TILE, c]``
    (right operands of scores, minus infinity for padding); by slot ``[tiles * TILE]``: ``squares`` float64, ``ids``
    (-1: padding), ``documents`` int64. ``largest``: the greatest square."""

    vectors: Tensor
    squares: Tensor
    ids: Tensor
    documents: Tensor
    first_tiles: Tensor
    largest: float


@dataclass(frozen=True)
class Span:
    """Vectors ``first:end`` of the lists on ``device``."""

    first: int
    end: int
    device: str


def load(lists: Lists, span: Span, blocks: Blocks) -> Part:
    """The vectors of ``span``, read block by block."""
    import torch

    ids = lists.ids[span.first : span.end]
    of = torch.from_numpy(lists.of[span.first : span.end]).to(span.device)
    counts = torch.bincount(of, minlength=len(lists.centroids))
    first_tiles = _starts(-(-counts // TILE))
    order = torch.argsort(of, stable=True)
    listed = of[order].long()
    slots = torch.empty_like(order)
    slots[order] = first_tiles[listed] * TILE + torch.arange(len(order), device=span.device) - _starts(counts)[listed]
    size = int(first_tiles[-1]) * TILE
    vectors: Tensor = None
    squares = torch.zeros(size, dtype=torch.float64, device=span.device)
    owners = torch.zeros(size, dtype=torch.int64, device=span.device)
    numbers = torch.full((size,), -1, dtype=torch.int64, device=span.device)
    numbers[slots] = torch.from_numpy(ids).to(span.device)
    for block in blocks(ids):
        low, high = np.searchsorted(ids, (block.first, block.first + len(block.vectors)))
        rows = ids[low:high] - block.first
        if vectors is None:
            dimension = block.vectors.shape[1]
            vectors = torch.zeros((size, columns(dimension)), dtype=torch.float16, device=span.device)
            vectors[:, dimension] = -torch.inf
        given = torch.from_numpy(block.vectors[rows]).to(span.device)
        at = slots[low:high]
        vectors[at] = answering(given)
        squares[at] = given.double().square_().sum(dim=1)
        owners[at] = torch.from_numpy(block.documents[rows].view(np.int64)).to(span.device)
    return Part(
        vectors.reshape(-1, TILE, vectors.shape[1]), squares, numbers, owners, first_tiles, float(squares.max())
    )


def spans(lists: Lists, dimension: int, devices: Sequence[str], capacity: int) -> list[Span]:
    """Even divisions of the vectors, one for each device or as many more as ``capacity`` bytes a device ask for."""
    count = len(lists.ids)
    row_bytes = columns(dimension) * 2 + 3 * 8
    # Each list may end in a tile that is nearly empty.
    room = max(1, capacity // row_bytes - len(lists.centroids) * (TILE - 1))
    parts = max(len(devices), -(-count // room))
    parts = min(-(-parts // len(devices)) * len(devices), count)
    cuts = [count * number // parts for number in range(parts + 1)]
    return [Span(cuts[i], cuts[i + 1], devices[i % len(devices)]) for i in range(parts)]


def capacity(device: str) -> int:
    """Bytes for vectors on ``device``."""
    import torch

    free = int(torch.cuda.mem_get_info(device)[0])
    return free - min(WORKSPACE_BYTES, free // 2)


class Scan:
    """Vectors on devices: kept there if they fit, else read again, part by part, for each batch of queries."""

    def __init__(self, lists: Lists, blocks: Blocks, divided: Sequence[Span]) -> None:
        self._lists = lists
        self._divided = divided
        self._devices = sorted({span.device for span in divided})
        resident = len(divided) == len(self._devices)
        self._parts = {span: load(lists, span, blocks) for span in divided} if resident else {}
        self._blocks = blocks
        self._given = {
            device: answering(_on(device, lists.centroids)) for device in self._devices if len(lists.centroids) > 1
        }

    def nearest(self, queries: Queries, k: int, nprobe: int) -> Found:
        """The ``k`` nearest of other documents in the ``nprobe`` nearest lists. Counts all nearer ones of the own."""

        def of_part(part: Part, device: str) -> tuple[Keys, Refused]:
            found = [
                (rows.start, _nearest(part, vectors, _on(device, documents[rows]), probes, k))
                for rows, vectors, probes in self._batches(queries.vectors, nprobe, part, device)
            ]
            keys = np.concatenate([keys for _, (keys, _, _) in found])
            rows = np.concatenate([start + of for start, (_, of, _) in found])
            return keys, Refused.of_same_document(rows, np.concatenate([own for _, (_, _, own) in found]))

        if not len(queries):
            return Found.nothing(0, k)
        documents = queries.documents.view(np.int64)
        found = self._over_parts(of_part)
        best = smallest(np.concatenate([keys for keys, _ in found], axis=1), k)
        counts = [refused.nearer_than(best).counts(len(best)) for _, refused in found]
        return Found(best, np.sum(counts, axis=0))

    def coarse(
        self, vectors: NDArray[np.float32], width: int, nprobe: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Distances and ids ``[m, width]`` of the nearest, whatever their document; see core/search.py."""

        def of_part(part: Part, device: str) -> Keys:
            batches = self._batches(vectors.astype(np.float16), nprobe, part, device)
            return np.concatenate([_widest(part, of, probes, width) for _, of, probes in batches])

        ids, distances = unpack(smallest(np.concatenate(self._over_parts(of_part), axis=1), width))
        return distances, ids

    def _over_parts(self, of_part: Callable[[Part, str], Any]) -> list[Any]:
        def on(device: str) -> list[Any]:
            spans_of = [span for span in self._divided if span.device == device]
            return [
                of_part(self._parts.get(span) or load(self._lists, span, self._blocks), device) for span in spans_of
            ]

        with ThreadPoolExecutor(len(self._devices)) as pool:
            return [found for of_device in pool.map(on, self._devices) for found in of_device]

    def _batches(
        self, vectors: NDArray[np.float16], nprobe: int, part: Part, device: str
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows, their vectors and probed lists (None: all) of as many queries as can be asked at once."""
        lists = len(self._lists.centroids)
        every = nprobe >= lists
        probed_tiles = part.vectors.shape[0] * (1 if every else nprobe / lists)
        rows = int(min(MOST_ROWS, MOST_PAIRS // (1 if every else nprobe), MOST_BEST / (probed_tiles * GROUPS)))
        rows = max(PROBE_ROWS, rows // PROBE_ROWS * PROBE_ROWS) if not every else max(1, rows)
        for start in range(0, len(vectors), rows):
            of = slice(start, min(start + rows, len(vectors)))
            queries = _on(device, vectors[of])
            yield of, queries, None if every else self._probes(queries, nprobe, device)

    def _probes(self, queries: Tensor, nprobe: int, device: str) -> Tensor:
        """The nearest lists of each query, int64 ``[m, nprobe]``."""
        import torch

        project = self._lists.project
        asked = asking(_on(device, project(queries.float().cpu().numpy())) if project else queries)
        probes = []
        for block in asked.split(PROBE_ROWS):
            filled = torch.cat((block, block.new_zeros((PROBE_ROWS - len(block), block.shape[1]))))
            probes.append(scores(filled, self._given[device]).topk(nprobe, dim=1).indices[: len(block)])
        return torch.cat(probes)


def _nearest(
    part: Part, queries: Tensor, documents: Tensor, probes: Tensor | None, k: int
) -> tuple[Keys, NDArray[np.int64], Keys]:
    """Keys ``[m, k]``; rows and keys of nearer vectors of the same document. ``queries`` half ``[m, d]``."""
    import torch

    best = Best.of(part, asking(queries), probes)
    keys = torch.full((len(queries), k), NONE, device=queries.device)
    own_rows, own_keys = [], []
    open_rows = torch.arange(len(queries), device=queries.device)
    wanted = FIRST_GROUPS
    while len(open_rows):
        groups, bound = best.groups(open_rows, wanted)
        proven = []
        step = max(1, EXACT_NUMBERS // (groups.shape[1] * GROUP * queries.shape[1]))
        for rows, of, limit in zip(open_rows.split(step), groups.split(step), bound.split(step), strict=True):
            slots, scored = _exact(part, queries[rows], of)
            own = (part.documents[slots] == documents[rows, None]) & (scored != NONE)
            of_row = scored.masked_fill(own, NONE).topk(min(k, scored.shape[1]), largest=False).values.sort().values
            keys[rows, : of_row.shape[1]] = of_row
            done = _is_proven(part, queries[rows], keys[rows, -1], limit)
            where, columns_of = (own & (scored < keys[rows, -1:]) & done[:, None]).nonzero(as_tuple=True)
            own_rows.append(rows[where].cpu().numpy())
            own_keys.append(_unsigned(scored[where, columns_of]))
            proven.append(done)
        open_rows = open_rows[~torch.cat(proven)]
        wanted *= WIDEN
    return _unsigned(keys), np.concatenate(own_rows), np.concatenate(own_keys)


def _widest(part: Part, queries: Tensor, probes: Tensor | None, width: int) -> Keys:
    """Keys ``[m, width]`` of the nearest vectors, among which are those of the best scores."""
    import torch

    rows = torch.arange(len(queries), device=queries.device)
    groups, _ = Best.of(part, asking(queries), probes).groups(rows, width)
    step = max(1, EXACT_NUMBERS // (groups.shape[1] * GROUP * queries.shape[1]))
    found = [
        _exact(part, of_queries, of)[1].topk(min(width, of.shape[1] * GROUP), largest=False).values
        for of_queries, of in zip(queries.split(step), groups.split(step), strict=True)
    ]
    return smallest(_unsigned(torch.cat(found)), width)


@dataclass(frozen=True)
class Best:
    """Best score of each group of the probed lists. ``table`` half ``[m, groups]``, minus infinity beyond a row's end.
    ``probes``, ``ends`` int64 ``[m, p]``: probed lists, and tiles up to the end of each. ``first_tiles``: its."""

    table: Tensor
    probes: Tensor
    ends: Tensor
    first_tiles: Tensor

    @staticmethod
    def of(part: Part, asked: Tensor, probes: Tensor | None) -> "Best":
        """``asked``: left operands ``[m, c]``."""
        import torch

        if probes is None:
            return Best._of_all(part, asked)
        first_tiles = part.first_tiles
        tiles = first_tiles.diff()
        of_pair = tiles[probes]
        ends = of_pair.cumsum(dim=1)
        # One more row, for the queries that fill up a tile of queries.
        table = asked.new_full((len(asked) + 1, max(1, int(ends[:, -1].max())), GROUPS), -torch.inf)
        asked = torch.cat((asked, asked[:1]))
        columns_of = torch.cat(((ends - of_pair).reshape(-1), ends.new_zeros(1)))
        side, seats, query_tiles = _seats(probes.reshape(-1), len(tiles))
        listed = torch.repeat_interleave(query_tiles)
        per_query_tile = tiles[listed]
        items = torch.repeat_interleave(per_query_tile)
        nth = torch.arange(len(items), device=items.device) - _starts(per_query_tile)[items]
        for item, at in zip(*(of.split(ITEM_ROWS // max(side, TILE)) for of in (items, nth)), strict=True):
            pairs = seats[item]
            rows = pairs // probes.shape[1]
            found = scores(asked[rows], part.vectors[first_tiles[listed[item]] + at])
            best = found.reshape(*found.shape[:2], GROUPS, GROUP).amax(dim=-1)
            table[rows, columns_of[pairs] + at[:, None]] = best
        return Best(table[:-1].reshape(len(table) - 1, -1), probes, ends, first_tiles)

    @staticmethod
    def _of_all(part: Part, asked: Tensor) -> "Best":
        """All tiles as one list, which needs no sorting."""
        import torch

        best = [
            scores(asked, block.flatten(0, 1)).reshape(len(asked), -1, GROUP).amax(dim=-1)
            for block in part.vectors.split(max(1, EXACT_NUMBERS // (len(asked) * TILE)))
        ]
        probes = torch.zeros((len(asked), 1), dtype=torch.int64, device=asked.device)
        first_tiles = part.first_tiles[[0, -1]]
        return Best(torch.cat(best, dim=1), probes, first_tiles[1:].expand(len(asked), 1).contiguous(), first_tiles)

    def groups(self, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` best groups of ``rows`` ``[r]`` (or as many as there are; -1: none), and the score that none
        of the others is above, ``[r]``."""
        import torch

        table = self.table if len(rows) == len(self.table) else self.table[rows]
        values, at = table.topk(min(wanted, table.shape[1]), dim=1)
        tile, ends = at // GROUPS, self.ends[rows]
        number = torch.searchsorted(ends, tile, right=True).clamp_(max=ends.shape[1] - 1)
        before = tile - torch.where(number > 0, ends.gather(1, (number - 1).clamp_(min=0)), 0)
        tile = self.first_tiles[self.probes[rows].gather(1, number)] + before
        groups = torch.where(values > -torch.inf, tile * GROUPS + at % GROUPS, -1)
        everything = values.shape[1] == table.shape[1]
        return groups, values.new_full((len(rows),), -torch.inf) if everything else values[:, -1]


def _seats(lists: Tensor, count: int) -> tuple[int, Tensor, Tensor]:
    """Pairs of query and list, sorted into tiles of ``side`` pairs of one list: ``side``, pair of each seat int64
    ``[tiles, side]`` (``len(lists)``: nobody), and tiles of each of ``count`` lists."""
    import torch

    sizes = torch.bincount(lists, minlength=count)
    usual = len(lists) / count
    side = QUERY_TILES[0]
    while side < min(usual, QUERY_TILES[1]):
        side *= 2
    tiles = -(-sizes // side)
    order = torch.argsort(lists, stable=True)
    listed = lists[order]
    seat = _starts(tiles)[listed] * side + torch.arange(len(lists), device=lists.device) - _starts(sizes)[listed]
    seats = torch.full((int(tiles.sum()) * side,), len(lists), device=lists.device)
    seats[seat] = order
    return side, seats.reshape(-1, side), tiles


def _exact(part: Part, queries: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Slots and exact keys of the members of ``groups`` ``[m, w]``: int64 ``[m, w * GROUP]``, NONE for no vector."""
    import torch

    slots = (groups.clamp(min=0)[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)).flatten(1)
    vectors = part.vectors.reshape(-1, part.vectors.shape[-1])[slots].double()
    # Columns beyond the dimension are multiplied with zero; padding becomes NaN there, and is masked.
    wide = torch.nn.functional.pad(queries.double(), (0, vectors.shape[-1] - queries.shape[1]))
    products = torch.bmm(vectors, wide[:, :, None])[..., 0]
    distances = (wide.square().sum(dim=1, keepdim=True) + part.squares[slots] - 2 * products).float().clamp_(min=0)
    ids = part.ids[slots]
    keys = (distances.view(torch.int32).long() << 32) | ids
    missing = (ids < 0) | (groups < 0).repeat_interleave(GROUP, dim=1)
    return slots, keys.masked_fill_(missing, NONE)


def _is_proven(part: Part, queries: Tensor, last: Tensor, bound: Tensor) -> Tensor:
    """Whether no group that was left out, with scores up to ``bound``, holds a vector as near as ``last`` (a key)."""
    import torch

    squares = queries.float().square().sum(dim=1)
    error = ROUNDING * max(1.0, part.largest, float(squares.max()))
    distance = torch.where(last == NONE, torch.inf, (last >> 32).int().view(torch.float32))
    return (bound == -torch.inf) | (bound.float() + error < (squares - distance) / 2)


def _starts(sizes: Tensor) -> Tensor:
    """``[0, sizes[0], sizes[0] + sizes[1], …]``."""
    import torch

    return torch.cat((sizes.new_zeros(1), sizes.cumsum(dim=0)))


def _on(device: str, values: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(values if values.flags.writeable else values.copy()).to(device)


def _unsigned(keys: Tensor) -> Keys:
    found: Keys = keys.cpu().numpy().view(np.uint64)
    return np.where(found == np.uint64(NONE), NOTHING, found)
