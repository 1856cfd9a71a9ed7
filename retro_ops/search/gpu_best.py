"""The best score of each group of vectors in the lists that a query probes; see ``gpu_nearest``.

Most of the arithmetic of a search is here. A Triton kernel (``gpu_kernels``) multiplies each list with all queries that
probe it and keeps only the best of each group, so scores never reach memory. Where there is no Triton, on a CPU above
all, torch does it list by list.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache

from retro_ops.compute.fp16_scores import Tensor, scores
from retro_ops.search.gpu_part import GROUP, Part, starts

QUERY_TILES = (16, 128)
"""Fewest and most queries that are multiplied with a list together."""

MOST_BEST = 2**29
"""Best scores (halves) that are held at a time."""

MOST_SCORES = 2**28
"""Scores that torch computes at a time."""


@dataclass(frozen=True)
class Best:
    """The best score of each group in the lists that a query probes, one list after the other."""

    table: Tensor
    """Half ``[m, groups]``, minus infinity beyond the end of a row."""
    probes: Tensor
    """Int64 ``[m, p]``: probed lists."""
    ends: Tensor
    """Int64 ``[m, p]``: groups of a row up to the end of each probed list."""
    first_groups: Tensor
    """Int64 ``[lists + 1]``, as in ``Part``."""

    @staticmethod
    def of(part: Part, operand: Tensor, probes: Tensor | None) -> "Best":
        """Scores the left operands ``operand`` half ``[m, c]`` with all vectors of their ``probes`` int64 ``[m, p]``
        (None: of all lists, which then count as one)."""
        first_groups = part.first_groups
        if probes is None:
            first_groups = first_groups[[0, -1]]
            probes = first_groups.new_zeros((len(operand), 1))
        of_pair = first_groups.diff()[probes]  # [m, p]
        ends = of_pair.cumsum(dim=1)
        table = operand.new_full((len(operand), max(1, int(ends[:, -1].max()))), -float("inf"))
        multiply = _by_triton if operand.device.type == "cuda" and _has_triton() else _by_torch
        multiply(part, operand, first_groups, probes, ends - of_pair, table)
        return Best(table, probes, ends, first_groups)

    @staticmethod
    def width(part: Part, probes: Tensor | None) -> int:
        """Columns of the table."""
        if probes is None:
            return int(part.first_groups[-1])
        return int(part.first_groups.diff()[probes].sum(dim=1).max())

    def reaching(self, rows: Tensor, least: Tensor) -> Tensor:
        """Groups of each of ``rows`` ``[r]`` whose best score is at least ``least`` ``[r]``: int64 ``[r]``."""
        return (self._of(rows) >= least[:, None]).sum(dim=1)

    def groups(self, rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` best groups of each of ``rows`` ``[r]``, and a score that no other group exceeds.

        Groups int64 ``[r, wanted]`` (or as many as there are), numbered through all lists, -1 for none. Scores half
        ``[r]``, minus infinity if there is no other group.
        """
        import torch

        table = self._of(rows)
        values, at = table.topk(min(wanted, table.shape[1]), dim=1)
        ends = self.ends[rows]
        # The place of a group in its row -> which probed list, and the group within it -> its number in all lists.
        number = torch.searchsorted(ends, at, right=True).clamp_(max=ends.shape[1] - 1)
        before = at - torch.where(number > 0, ends.gather(1, (number - 1).clamp_(min=0)), 0)
        groups = self.first_groups[self.probes[rows].gather(1, number)] + before
        groups = torch.where(values > -torch.inf, groups, -1)
        everything = values.shape[1] == table.shape[1]
        return groups, values.new_full((len(rows),), -torch.inf) if everything else values[:, -1]

    def _of(self, rows: Tensor) -> Tensor:
        return self.table if len(rows) == len(self.table) else self.table[rows]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _by_triton(
    part: Part, operand: Tensor, first_groups: Tensor, probes: Tensor, columns: Tensor, table: Tensor
) -> None:
    """Fills ``table``. ``columns`` int64 ``[m, p]``: where the groups of each probed list begin in it."""
    from retro_ops.search import gpu_kernels

    pairs, listed = _seats(probes.reshape(-1), len(first_groups) - 1)
    gpu_kernels.best_scores(operand, part.vectors, first_groups, pairs, listed, probes.shape[1], columns, table)


def _by_torch(
    part: Part, operand: Tensor, first_groups: Tensor, probes: Tensor, columns: Tensor, table: Tensor
) -> None:
    """The same as ``_by_triton``."""
    import torch

    for of in probes.unique().tolist():
        first, end = first_groups[of : of + 2].tolist()
        rows, places = (probes == of).nonzero(as_tuple=True)
        for some in torch.arange(len(rows), device=rows.device).split(
            max(1, MOST_SCORES // max(1, end - first) // GROUP)
        ):
            found = scores(operand[rows[some]], part.vectors[first * GROUP : end * GROUP])
            at = columns[rows[some], places[some]][:, None] + torch.arange(end - first, device=rows.device)
            table[rows[some][:, None], at] = found.reshape(len(some), -1, GROUP).amax(dim=-1)


def _seats(lists: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Seats pairs of a query and a list in query tiles: pairs of one list that are multiplied together.

    ``lists`` int64 ``[pairs]``: the list of each pair, of ``count`` lists. Returns the pair in each seat, int64
    ``[query tiles, side]``, -1 for an empty one, and the list of each query tile, int64 ``[query tiles]``. ``side`` is
    about the usual number of queries of a list.
    """
    import torch

    sizes = torch.bincount(lists, minlength=count)
    side = QUERY_TILES[0]
    while side < min(len(lists) / count, QUERY_TILES[1]):
        side *= 2
    tiles = -(-sizes // side)
    order = torch.argsort(lists, stable=True)
    listed = lists[order]
    seat = starts(tiles)[listed] * side + torch.arange(len(lists), device=lists.device) - starts(sizes)[listed]
    seats = torch.full((int(tiles.sum()) * side,), -1, device=lists.device)
    seats[seat] = order
    return seats.reshape(-1, side), torch.repeat_interleave(tiles)
