"""Vectors on one device, cut into tiles by list: the nearest of the probed lists, exactly; see core/scan.py."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import ROUNDING, Tensor, answering, asking, columns, on, scores
from retro_ops.search.exact import NOTHING, Keys, smallest
from retro_ops.search.reranking import Blocks

TILE = 64
"""Vectors of one list that are multiplied at a time; each list is padded to whole tiles."""

GROUP = 16
"""Vectors of which the best score is kept. Those of a list lie in the order of ids, so a document's are together."""

GROUPS = TILE // GROUP

FIRST_GROUPS = 16
"""Groups whose members are looked at first: most rows need no more."""

EXACT_OF_A_GROUP = 2
"""Members for each of these groups that are scored exactly: those with the best scores of all of other documents."""

WIDEN = 4

QUERY_TILES = (16, 512)
"""Fewest and most queries that are multiplied with a tile at a time."""

ITEM_ROWS = 2**20
"""Vectors and queries that are gathered for products at a time: 800 MB each at d = 384."""

GATHERED_NUMBERS = 2**30
"""Numbers of members that are gathered at a time, half each."""

EXACT_NUMBERS = 2**28
"""Numbers of vectors that are scored exactly at a time, float64 each."""

OWN_PAIRS = 2**20
"""Pairs of a row and a vector of its own document at a time."""

NONE = 2**63 - 1
"""The key after all others, in torch's signed integers."""


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

    def to(self, device: str) -> "Part":
        """The same on another device; itself on its own."""
        return Part(
            self.vectors.to(device),
            self.squares.to(device),
            self.ids.to(device),
            self.documents.to(device),
            self.first_tiles.to(device),
            self.largest,
        )


def load(of_vectors: NDArray[np.int32], ids: NDArray[np.int64], lists: int, blocks: Blocks, device: str) -> Part:
    """Vectors ``ids`` ``[n]`` (ascending) in the lists ``of_vectors`` ``[n]``, read block by block."""
    import torch

    of = on(device, of_vectors)
    counts = torch.bincount(of, minlength=lists)
    first_tiles = _starts(-(-counts // TILE))
    order = torch.argsort(of, stable=True)
    listed = of[order].long()
    slots = torch.empty_like(order)
    slots[order] = first_tiles[listed] * TILE + torch.arange(len(order), device=device) - _starts(counts)[listed]
    size = int(first_tiles[-1]) * TILE
    vectors: Tensor = None
    squares = torch.zeros(size, dtype=torch.float64, device=device)
    owners = torch.zeros(size, dtype=torch.int64, device=device)
    numbers = torch.full((size,), -1, dtype=torch.int64, device=device)
    numbers[slots] = on(device, ids)
    for block in blocks(ids):
        low, high = np.searchsorted(ids, (block.first, block.first + len(block.vectors)))
        rows = ids[low:high] - block.first
        if vectors is None:
            dimension = block.vectors.shape[1]
            vectors = torch.zeros((size, columns(dimension)), dtype=torch.float16, device=device)
            vectors[:, dimension] = -torch.inf
        given = on(device, block.vectors[rows])
        at = slots[low:high]
        vectors[at] = answering(given)
        squares[at] = given.double().square_().sum(dim=1)
        owners[at] = on(device, block.documents[rows].view(np.int64))
    return Part(
        vectors.reshape(-1, TILE, vectors.shape[1]), squares, numbers, owners, first_tiles, float(squares.max())
    )


def nearest(
    part: Part,
    queries: Tensor,
    documents: Tensor,
    probes: Tensor | None,
    k: int,
    removed: Callable[[Tensor, Tensor], None],
) -> Keys:
    """Keys ``[m, k]``. ``queries`` half ``[m, d]``. ``removed`` is given rows and keys of nearer vectors of the same
    document, some at a time."""
    import torch

    asked = asking(queries)
    squares = queries.float().square().sum(dim=1)
    error = ROUNDING * max(1.0, part.largest, float(squares.max()))
    best = Best.of(part, asked, probes)
    keys = torch.full((len(queries), k), NONE, device=queries.device)
    open_rows = torch.arange(len(queries), device=queries.device)
    wanted = FIRST_GROUPS
    while len(open_rows):
        groups, bound = best.groups(open_rows, wanted)
        proven = []
        step = _at_once(part, groups)
        for rows, of, limit in zip(open_rows.split(step), groups.split(step), bound.split(step), strict=True):
            slots, found = _scored_members(part, asked[rows], of)
            own = (part.documents[slots] == documents[rows, None]) & (slots >= 0)
            count = min(wanted * EXACT_OF_A_GROUP, slots.shape[1])
            values, at = found.masked_fill(own, -torch.inf).topk(count, dim=1)
            scored = _exact(part, queries[rows], torch.where(values > -torch.inf, slots.gather(1, at), -1))
            of_row = scored.topk(min(k, scored.shape[1]), largest=False).values.sort().values
            keys[rows, : of_row.shape[1]] = of_row
            if count < slots.shape[1]:
                limit = torch.maximum(limit, values[:, -1])
            # None of the others has a score above the limit.
            # None has one below this that is as near as the last neighbour.
            distance = (keys[rows, -1] >> 32).int().view(torch.float32)
            least = (squares[rows] - distance.masked_fill(keys[rows, -1] == NONE, torch.inf)) / 2 - error
            done = (limit == -torch.inf) | (limit.float() < least)
            proven.append(done)
            where, at = (own & (found.float() >= least[:, None]) & done[:, None]).nonzero(as_tuple=True)
            for pairs, of_own in zip(rows[where].split(OWN_PAIRS), slots[where, at].split(OWN_PAIRS), strict=True):
                own_of = _exact(part, queries[pairs], of_own[:, None])[:, 0]
                nearer = own_of < keys[pairs, -1]
                removed(pairs[nearer], own_of[nearer])
        open_rows = open_rows[~torch.cat(proven)]
        wanted *= WIDEN
    return unsigned(keys)


def widest(part: Part, queries: Tensor, probes: Tensor | None, width: int) -> Keys:
    """Keys ``[m, width]`` of the nearest vectors, among which are those of the best scores."""
    import torch

    rows = torch.arange(len(queries), device=queries.device)
    groups, _ = Best.of(part, asking(queries), probes).groups(rows, width)
    step = _at_once(part, groups)
    found = [
        _exact(part, of_queries, _members(of)).topk(min(width, of.shape[1] * GROUP), largest=False).values
        for of_queries, of in zip(queries.split(step), groups.split(step), strict=True)
    ]
    return smallest(unsigned(torch.cat(found)), width)


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


def _at_once(part: Part, groups: Tensor) -> int:
    """Rows whose members of ``groups`` ``[m, w]`` GATHERED_NUMBERS allow at a time."""
    return max(1, GATHERED_NUMBERS // int(groups.shape[1] * GROUP * part.vectors.shape[-1]))


def _members(groups: Tensor) -> Tensor:
    """Slots of the members of ``groups`` ``[m, w]``: int64 ``[m, w * GROUP]``, -1 for none."""
    import torch

    slots = groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)
    return torch.where(groups[:, :, None] < 0, -1, slots).flatten(1)


def _scored_members(part: Part, asked: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of the members of ``groups`` ``[m, w]`` and their scores, ``[m, w * GROUP]``; -1 and minus infinity for
    none. Halves are gathered: a quarter of what exact distances take."""
    import torch

    slots = _members(groups)
    found = scores(asked[:, None], part.vectors.reshape(-1, part.vectors.shape[-1])[slots.clamp(min=0)])[:, 0]
    return slots, found.masked_fill_(slots < 0, -torch.inf)


def _exact(part: Part, queries: Tensor, slots: Tensor) -> Tensor:
    """Exact keys of the vectors at ``slots`` ``[m, w]``, NONE for none; for as many rows at a time as EXACT_NUMBERS
    allow, the queries counted."""
    import torch

    step = max(1, EXACT_NUMBERS // ((slots.shape[1] + 3) * part.vectors.shape[-1]))
    if len(slots) > step:
        some = zip(queries.split(step), slots.split(step), strict=True)
        return torch.cat([_exact(part, *of) for of in some])
    there = slots.clamp(min=0)
    vectors = part.vectors.reshape(-1, part.vectors.shape[-1])[there].double()
    # Columns beyond the dimension are multiplied with zero; padding becomes NaN there, and is masked.
    wide = torch.nn.functional.pad(queries.double(), (0, vectors.shape[-1] - queries.shape[1]))
    products = torch.bmm(vectors, wide[:, :, None])[..., 0]
    distances = (wide.square().sum(dim=1, keepdim=True) + part.squares[there] - 2 * products).float().clamp_(min=0)
    ids = part.ids[there]
    keys = (distances.view(torch.int32).long() << 32) | ids
    return keys.masked_fill_((ids < 0) | (slots < 0), NONE)


def _starts(sizes: Tensor) -> Tensor:
    """``[0, sizes[0], sizes[0] + sizes[1], …]``."""
    import torch

    return torch.cat((sizes.new_zeros(1), sizes.cumsum(dim=0)))


def unsigned(keys: Tensor) -> Keys:
    found: Keys = keys.cpu().numpy().view(np.uint64)
    return np.where(found == np.uint64(NONE), NOTHING, found)
