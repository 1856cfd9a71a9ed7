"""Exact search of probed lists on one device, whose vectors are cut into tiles by list; see ``gpu_search``.

A *tile* is TILE vectors of one list, multiplied together; a *slot* is the place of a vector in all tiles; a *group* is
GROUP slots that follow one another in a tile.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import ROUNDING, Tensor, columns, on, query_operand, scores, vector_operand
from retro_ops.search.exact import NOTHING, Keys
from retro_ops.search.hits import Blocks

TILE = 64
"""Vectors of one list that are multiplied together; each list is padded to whole tiles."""

GROUP = 16
"""Vectors of which only the best score is kept. A list is in the order of ids, so those of a document are together."""

GROUPS = TILE // GROUP

FIRST_GROUPS = 16
"""Groups of a row whose members are scored in the first round: most rows need no more."""

EXACT_OF_A_GROUP = 2
"""Members scored exactly for each group of a row: the best of all its members that are of other documents."""

WIDEN = 4

QUERY_TILES = (16, 512)
"""Fewest and most queries that are multiplied with a tile together."""

ITEM_ROWS = 2**20
"""Vectors, and queries, gathered for products at a time: 800 MB each at d = 384."""

GATHERED_NUMBERS = 2**30
"""Half-precision numbers of group members gathered at a time."""

EXACT_NUMBERS = 2**28
"""Float64 numbers of vectors that are scored exactly at a time."""

OWN_PAIRS = 2**20
"""Pairs of a row and a vector of its own document that are scored exactly at a time."""

NONE = 2**63 - 1
"""No key: sorts after all others, in torch's signed integers."""


@dataclass(frozen=True)
class Part:
    """Vectors on one device, list by list."""

    vectors: Tensor
    """Half ``[tiles, TILE, c]``: right operands of scores, of which padding has minus infinity."""
    squares: Tensor
    """Float64 ``[slots]``: squared lengths."""
    ids: Tensor
    """Int64 ``[slots]``, -1 for padding."""
    documents: Tensor
    """Int64 ``[slots]``: identity of each vector's document."""
    first_tiles: Tensor
    """Int64 ``[lists + 1]``: first tile of each list, and the end."""
    largest: float
    """The greatest square."""

    def to(self, device: str) -> "Part":
        """A copy on another device; the same tensors on its own."""
        return Part(
            self.vectors.to(device),
            self.squares.to(device),
            self.ids.to(device),
            self.documents.to(device),
            self.first_tiles.to(device),
            self.largest,
        )


def load(of_vectors: NDArray[np.int32], ids: NDArray[np.int64], lists: int, blocks: Blocks, device: str) -> Part:
    """Reads the vectors ``ids`` int64 ``[n]`` (ascending), which are in the lists ``of_vectors`` int32 ``[n]``.

    1. Count the vectors of each list, and from that its first tile.
    2. Sort by list (stable, so a list stays in the order of ids): the slot of a vector is the first slot of its list
       plus its place in the list.
    3. Read block by block, and write each vector to its slot. All other slots stay padding.
    """
    import torch

    of = on(device, of_vectors)
    counts = torch.bincount(of, minlength=lists)
    first_tiles = _starts(-(-counts // TILE))  # [lists + 1]
    order = torch.argsort(of, stable=True)
    listed = of[order].long()  # [n], ascending
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
            vectors[:, dimension] = -torch.inf  # The score of padding: its other numbers are zero.
        read = on(device, block.vectors[rows])
        at = slots[low:high]
        vectors[at] = vector_operand(read)
        squares[at] = read.double().square_().sum(dim=1)
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
    """Keys ``[m, k]`` of the nearest vectors of other documents in the probed lists, exactly.

    ``queries`` half ``[m, d]``, ``documents`` int64 ``[m]``, ``probes`` int64 ``[m, p]`` (None: all lists).

    1. Every vector of the probed lists gets a score in half precision, and of each GROUP of vectors the best score is
       kept (``Best``).
    2. Of each row that is not done, the ``wanted`` best groups are taken. No vector of another group has a score above
       the ``bound`` of the row.
    3. Their members are scored once more; the best of other documents are scored exactly, and the ``k`` smallest keys
       are the neighbours so far. No vector that was left out, here or in step 2, has a score above ``limit``.
    4. A vector as near as the last neighbour has at least the score ``least``, allowing for the rounding error of a
       score. The row is done if ``limit`` is below it: then no vector that was left out is a neighbour.
    5. Of a row that is done, nearer vectors of its own document go to ``removed``, as rows and keys, some at a time.
    6. For the other rows, steps 2 to 5 are repeated with WIDEN times as many groups.
    """
    import torch

    operand = query_operand(queries)
    squares = queries.float().square().sum(dim=1)
    error = ROUNDING * max(1.0, part.largest, float(squares.max()))
    best = Best.of(part, operand, probes)
    keys = torch.full((len(queries), k), NONE, device=queries.device)
    open_rows = torch.arange(len(queries), device=queries.device)
    wanted = FIRST_GROUPS
    while len(open_rows):
        groups, bound = best.groups(open_rows, wanted)
        proven = []
        step = _at_once(part, groups)
        for rows, of, limit in zip(open_rows.split(step), groups.split(step), bound.split(step), strict=True):
            slots, members = _scored_members(part, operand[rows], of)
            own = (part.documents[slots] == documents[rows, None]) & (slots >= 0)
            count = min(wanted * EXACT_OF_A_GROUP, slots.shape[1])
            values, at = members.masked_fill(own, -torch.inf).topk(count, dim=1)
            exact = _exact(part, queries[rows], torch.where(values > -torch.inf, slots.gather(1, at), -1))
            of_row = exact.topk(min(k, exact.shape[1]), largest=False).values.sort().values
            keys[rows, : of_row.shape[1]] = of_row
            if count < slots.shape[1]:  # Members were left out as well.
                limit = torch.maximum(limit, values[:, -1])
            # The high half of a key is the distance; a row without k neighbours has no least score.
            distance = (keys[rows, -1] >> 32).int().view(torch.float32)
            least = (squares[rows] - distance.masked_fill(keys[rows, -1] == NONE, torch.inf)) / 2 - error
            done = (limit == -torch.inf) | (limit.float() < least)  # At minus infinity nothing was left out.
            proven.append(done)
            where, at = (own & (members.float() >= least[:, None]) & done[:, None]).nonzero(as_tuple=True)
            for pairs, of_own in zip(rows[where].split(OWN_PAIRS), slots[where, at].split(OWN_PAIRS), strict=True):
                own_keys = _exact(part, queries[pairs], of_own[:, None])[:, 0]
                nearer = own_keys < keys[pairs, -1]
                removed(pairs[nearer], own_keys[nearer])
        open_rows = open_rows[~torch.cat(proven)]
        wanted *= WIDEN
    return unsigned(keys)


@dataclass(frozen=True)
class Best:
    """The best score of each group in the lists that a query probes, one list after the other."""

    table: Tensor
    """Half ``[m, groups]``, minus infinity beyond the end of a row."""
    probes: Tensor
    """Int64 ``[m, p]``: probed lists."""
    ends: Tensor
    """Int64 ``[m, p]``: tiles of a row up to the end of each probed list."""
    first_tiles: Tensor
    """Int64 ``[lists + 1]``, as in ``Part``."""

    @staticmethod
    def of(part: Part, operand: Tensor, probes: Tensor | None) -> "Best":
        """Scores the left operands ``operand`` ``[m, c]`` with all vectors of their ``probes`` ``[m, p]``.

        1. Pairs of query and list are sorted by list, and divided into query tiles of ``side`` pairs (``_seats``).
        2. An item is a query tile with one tile of its list: ``scores`` of ``[side, c]`` and ``[TILE, c]``.
        3. Of these, the best of each group goes to the row of the query, where the tiles of this list begin.
        """
        import torch

        if probes is None:
            return Best._of_all(part, operand)
        first_tiles = part.first_tiles
        tiles = first_tiles.diff()
        of_pair = tiles[probes]  # [m, p]
        ends = of_pair.cumsum(dim=1)
        # One row more, for the empty seats of a query tile.
        table = operand.new_full((len(operand) + 1, max(1, int(ends[:, -1].max())), GROUPS), -torch.inf)
        operand = torch.cat((operand, operand[:1]))
        # First column (in tiles) of each pair, and of an empty seat.
        columns_of = torch.cat(((ends - of_pair).reshape(-1), ends.new_zeros(1)))
        side, seats, query_tiles = _seats(probes.reshape(-1), len(tiles))
        listed = torch.repeat_interleave(query_tiles)  # List of each query tile.
        per_query_tile = tiles[listed]
        items = torch.repeat_interleave(per_query_tile)  # Query tile of each item; nth: the tile of its list.
        nth = torch.arange(len(items), device=items.device) - _starts(per_query_tile)[items]
        for item, at in zip(*(of.split(ITEM_ROWS // max(side, TILE)) for of in (items, nth)), strict=True):
            pairs = seats[item]  # [items, side]
            rows = pairs // probes.shape[1]
            found = scores(operand[rows], part.vectors[first_tiles[listed[item]] + at])
            best = found.reshape(*found.shape[:2], GROUPS, GROUP).amax(dim=-1)
            table[rows, columns_of[pairs] + at[:, None]] = best
        return Best(table[:-1].reshape(len(table) - 1, -1), probes, ends, first_tiles)

    @staticmethod
    def _of_all(part: Part, operand: Tensor) -> "Best":
        """Scores with all vectors, as those of one list: no sorting is needed."""
        import torch

        best = [
            scores(operand, block.flatten(0, 1)).reshape(len(operand), -1, GROUP).amax(dim=-1)
            for block in part.vectors.split(max(1, EXACT_NUMBERS // (len(operand) * TILE)))
        ]
        probes = torch.zeros((len(operand), 1), dtype=torch.int64, device=operand.device)
        first_tiles = part.first_tiles[[0, -1]]
        return Best(torch.cat(best, dim=1), probes, first_tiles[1:].expand(len(operand), 1).contiguous(), first_tiles)

    def groups(self, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` best groups of each of ``rows`` ``[r]``, and a score that no other group exceeds.

        Groups int64 ``[r, wanted]`` (or as many as there are), numbered through all tiles, -1 for none. Scores half
        ``[r]``, minus infinity if there is no other group.
        """
        import torch

        table = self.table if len(rows) == len(self.table) else self.table[rows]
        values, at = table.topk(min(wanted, table.shape[1]), dim=1)
        tile, ends = at // GROUPS, self.ends[rows]
        # The place of a tile in its row -> which probed list, and the tile within it -> its number in all tiles.
        number = torch.searchsorted(ends, tile, right=True).clamp_(max=ends.shape[1] - 1)
        before = tile - torch.where(number > 0, ends.gather(1, (number - 1).clamp_(min=0)), 0)
        tile = self.first_tiles[self.probes[rows].gather(1, number)] + before
        groups = torch.where(values > -torch.inf, tile * GROUPS + at % GROUPS, -1)
        everything = values.shape[1] == table.shape[1]
        return groups, values.new_full((len(rows),), -torch.inf) if everything else values[:, -1]


def _seats(lists: Tensor, count: int) -> tuple[int, Tensor, Tensor]:
    """Seats pairs of a query and a list in query tiles of ``side`` pairs of one list.

    ``lists`` int64 ``[pairs]``: the list of each pair, of ``count`` lists. Returns ``side``, about the usual number of
    queries of a list; the pair in each seat, int64 ``[query tiles, side]``, ``pairs`` for an empty one; and the number
    of query tiles of each list, int64 ``[count]``.
    """
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
    """Rows of ``groups`` ``[m, w]`` whose members are gathered at a time, as GATHERED_NUMBERS allows."""
    return max(1, GATHERED_NUMBERS // int(groups.shape[1] * GROUP * part.vectors.shape[-1]))


def _members(groups: Tensor) -> Tensor:
    """Slots of the members of ``groups`` ``[m, w]``: int64 ``[m, w * GROUP]``, -1 for none."""
    import torch

    slots = groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)
    return torch.where(groups[:, :, None] < 0, -1, slots).flatten(1)


def _scored_members(part: Part, operand: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of the members of ``groups`` ``[m, w]`` and their scores, both ``[m, w * GROUP]``.

    -1 and minus infinity for none. Gathering halves takes a quarter of the memory of exact distances.
    """
    import torch

    slots = _members(groups)
    found = scores(operand[:, None], part.vectors.reshape(-1, part.vectors.shape[-1])[slots.clamp(min=0)])[:, 0]
    return slots, found.masked_fill_(slots < 0, -torch.inf)


def _exact(part: Part, queries: Tensor, slots: Tensor) -> Tensor:
    """Exact keys int64 ``[m, w]`` of the vectors at ``slots`` ``[m, w]`` for ``queries`` ``[m, d]``; NONE for slot -1.

    In float64, for as many rows at a time as EXACT_NUMBERS allows (queries count as well); see ``exact``.
    """
    import torch

    step = max(1, EXACT_NUMBERS // ((slots.shape[1] + 3) * part.vectors.shape[-1]))
    if len(slots) > step:
        some = zip(queries.split(step), slots.split(step), strict=True)
        return torch.cat([_exact(part, *of) for of in some])
    there = slots.clamp(min=0)
    vectors = part.vectors.reshape(-1, part.vectors.shape[-1])[there].double()
    # The columns beyond the dimension are multiplied by zero. Padding becomes NaN there, and is masked below.
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
