"""Exact search of probed lists among the vectors of one device; see ``gpu_search``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retro_ops.compute.fp16_scores import ROUNDING, Tensor, on, query_operand, scores
from retro_ops.search.exact import NOTHING, Keys
from retro_ops.search.gpu_best import MOST_BEST, Best, Layout
from retro_ops.search.gpu_part import GROUP, Part

FIRST_GROUPS = 16
"""Groups of a row whose members are scored in the first round: most rows need no more."""

FEW_GROUPS = 4
"""Groups of a row for which a search of another part left little to find."""

EXACT_OF_A_GROUP = 2
"""Members scored exactly for each group in the first round: the best of all members that are of other documents."""

WIDEN = 4

GATHERED_NUMBERS = 2**29
"""Half-precision numbers of group members gathered at a time."""

EXACT_NUMBERS = 2**27
"""Float64 numbers of vectors that are scored exactly at a time."""

OWN_PAIRS = 2**20
"""Pairs of a row and a vector of its own document that are scored exactly at a time."""

NONE = 2**63 - 1
"""No key: sorts after all others, in torch's signed integers."""

OwnHits = Callable[[Tensor, Tensor], None]
"""Takes rows int64 ``[n]`` and keys int64 ``[n]`` of hits of the row's own document, some at a time."""


def nearest(
    part: Part,
    queries: Tensor,
    documents: Tensor,
    probes: Tensor | None,
    k: int,
    removed: OwnHits,
    known: Keys | None = None,
) -> Keys:
    """Keys ``[m, k]`` of the nearest vectors of other documents in the probed lists, exactly.

    ``queries`` half ``[m, d]``, ``documents`` int64 ``[m]``, ``probes`` int64 ``[m, p]`` (None: all lists). ``known``
    ``[m, k]``: keys from other parts, which compete with those of this part.

    1. Every vector of the probed lists gets a score in half precision, and of each group of vectors the best score is
       kept (``Best``).
    2. A vector as near as the last neighbour that a row has so far has at least the score ``least``, allowing for the
       rounding error of a score. A row is done if no group reaches it.
    3. Of the other rows, the best groups are taken: all that reach ``least``, or ``wanted``. No vector of another group
       has a score above the ``bound`` of the row.
    4. Their members are scored once more; the best of other documents are scored exactly, and the ``k`` smallest keys
       are the neighbours so far. The ``bound`` is raised to the best score of a member that was left out.
    5. A row is done if its ``bound`` is below the new ``least``. Its nearer vectors of its own document go to
       ``removed``.
    6. For the other rows, steps 2 to 5 are repeated with WIDEN times as many groups, and as many more members of each.
    """
    import torch

    layout = Layout.of(part, probes, len(queries))
    if len(queries) > 1 and len(queries) * layout.width > MOST_BEST:

        def of(rows: slice) -> Keys:
            def shifted(at: Tensor, keys: Tensor) -> None:
                removed(at + rows.start, keys)

            lists, keys = (None if values is None else values[rows] for values in (probes, known))
            return nearest(part, queries[rows], documents[rows], lists, k, shifted, keys)

        half = len(queries) // 2
        return np.concatenate([of(slice(0, half)), of(slice(half, len(queries)))])
    keys = torch.full((len(queries), k), NONE, device=queries.device) if known is None else _signed(known, queries)
    operand = query_operand(queries)
    best = Best.of(part, operand, layout)
    search = _Search(part, queries, documents, removed, operand, best, keys.clone())
    open_rows = torch.arange(len(queries), device=queries.device)
    wanted = FIRST_GROUPS
    while len(open_rows):
        members = EXACT_OF_A_GROUP * wanted // FIRST_GROUPS
        left = [search.take(rows, size, members, keys) for rows, size in search.divided(open_rows, wanted, keys)]
        open_rows = torch.cat((*left, open_rows[:0]))
        wanted *= WIDEN
    return unsigned(keys)


@dataclass(frozen=True)
class _Search:
    """A search of one part for ``m`` queries; see ``nearest``."""

    part: Part
    queries: Tensor
    documents: Tensor
    removed: OwnHits
    operand: Tensor
    """Half ``[m, c]``: left operands of scores."""
    best: Best
    known: Tensor
    """Int64 ``[m, k]``: keys from other parts."""

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths of the queries, float32 ``[m]``."""
        return self.queries.float().square().sum(dim=1)

    @cached_property
    def error(self) -> float:
        """Bound on the rounding error of a score."""
        return ROUNDING * max(1.0, self.part.largest, float(self.squares.max()))

    def least(self, rows: Tensor, keys: Tensor) -> Tensor:
        """The least score, float32 ``[r]``, of a vector as near as the last of ``keys`` ``[m, k]`` of each of ``rows``:
        minus infinity for a row without k neighbours."""
        import torch

        last = keys[rows, -1]
        distance = (last >> 32).int().view(torch.float32)  # The high half of a key.
        return (self.squares[rows] - distance.masked_fill(last == NONE, torch.inf)) / 2 - self.error

    def divided(self, rows: Tensor, wanted: int, keys: Tensor) -> Iterator[tuple[Tensor, int]]:
        """``rows`` by the groups to take of them: all that reach ``least`` and one more, up to ``wanted``. Rows that no
        group reaches are left out."""
        reaching = self.best.reaching(rows, self.least(rows, keys))
        size, fewer = FEW_GROUPS, 0
        while True:
            size = min(size, wanted)
            of = rows[(reaching > fewer) & ((reaching < size) | (size == wanted))]
            if len(of):
                yield of, size
            if size == wanted:
                return
            size, fewer = size * WIDEN, size - 1

    def take(self, rows: Tensor, size: int, members: int, keys: Tensor) -> Tensor:
        """Puts the neighbours of ``rows`` among their ``size`` best groups into ``keys`` ``[m, k]``, and returns the
        rows that are not done. ``members`` of each group are scored exactly."""
        import torch

        groups, bound = self.best.groups(rows, size)
        step = _at_once(self.part, groups)
        left = [
            self._take(*some, members, keys)
            for some in zip(rows.split(step), groups.split(step), bound.split(step), strict=True)
        ]
        return torch.cat(left)

    def _take(self, rows: Tensor, groups: Tensor, bound: Tensor, members: int, keys: Tensor) -> Tensor:
        import torch

        slots, found = _scored_members(self.part, self.operand[rows], groups)
        own = (self.part.documents[slots] == self.documents[rows, None]) & (slots >= 0)
        count = min(groups.shape[1] * members, slots.shape[1])
        values, at = found.masked_fill(own, -torch.inf).topk(count, dim=1)
        exact = _exact(self.part, self.queries[rows], torch.where(values > -torch.inf, slots.gather(1, at), -1))
        both = torch.cat((self.known[rows], exact), dim=1)
        keys[rows] = both.topk(keys.shape[1], largest=False).values.sort().values
        if count < slots.shape[1]:  # Members were left out as well.
            bound = torch.maximum(bound, values[:, -1])
        least = self.least(rows, keys)
        done = (bound == -torch.inf) | (bound.float() < least)  # At minus infinity nothing was left out.
        where, at = (own & (found.float() >= least[:, None]) & done[:, None]).nonzero(as_tuple=True)
        for pairs, of_own in zip(rows[where].split(OWN_PAIRS), slots[where, at].split(OWN_PAIRS), strict=True):
            own_keys = _exact(self.part, self.queries[pairs], of_own[:, None])[:, 0]
            nearer = own_keys < keys[pairs, -1]
            self.removed(pairs[nearer], own_keys[nearer])
        return rows[~done]


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
    found = scores(operand[:, None], part.vectors[slots.clamp(min=0)])[:, 0]
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
    vectors = part.vectors[there].double()
    # The columns beyond the dimension are multiplied by zero. Padding becomes NaN there, and is masked below.
    wide = torch.nn.functional.pad(queries.double(), (0, vectors.shape[-1] - queries.shape[1]))
    products = torch.bmm(vectors, wide[:, :, None])[..., 0]
    distances = (wide.square().sum(dim=1, keepdim=True) + part.squares[there] - 2 * products).float().clamp_(min=0)
    ids = part.ids[there]
    keys = (distances.view(torch.int32).long() << 32) | ids
    return keys.masked_fill_((ids < 0) | (slots < 0), NONE)


def _signed(keys: Keys, like: Tensor) -> Tensor:
    """Keys on the device of ``like``, where NONE stands for NOTHING."""
    return on(str(like.device), np.where(keys == NOTHING, np.uint64(NONE), keys).view(np.int64))


def unsigned(keys: Tensor) -> Keys:
    found: Keys = keys.cpu().numpy().view(np.uint64)
    return np.where(found == np.uint64(NONE), NOTHING, found)
