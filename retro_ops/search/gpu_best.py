"""The best score of each group of vectors in the lists that a query probes; see ``gpu_nearest``.

Most of the arithmetic of a search is here. A Triton kernel (``gpu_kernels``) multiplies each list with all queries that
probe it and keeps only the best of each group, so scores never reach memory. Where there is no Triton, on a CPU above
all, torch does it list by list.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from retro_ops.compute.fp16_scores import Tensor, scores
from retro_ops.search.gpu_part import GROUP, Part, starts

QUERY_TILES = (16, 128)
"""Fewest and most queries that are multiplied with a list together."""

MOST_BEST = 2**29
"""Best scores (halves) that are held at a time."""

MOST_SCORES = 2**28
"""Scores that torch computes at a time."""


@dataclass(frozen=True)
class Layout:
    """The groups that each query is compared with: those of its probed lists, one list after the other."""

    first_groups: Tensor
    """Int64 ``[lists + 1]``, as in ``Part``."""
    probes: Tensor
    """Int64 ``[m, p]``: probed lists."""
    begins: Tensor
    """Int64 ``[m, p]``: groups of a row before each probed list."""
    ends: Tensor
    """Int64 ``[m, p]``: groups of a row up to the end of each probed list."""
    width: int
    """The most groups of a row, at least 1."""

    @staticmethod
    def of(part: Part, probes: Tensor | None, count: int) -> "Layout":
        """For ``count`` queries and their ``probes`` int64 ``[m, p]`` (None: all lists, which then count as one)."""
        first_groups = part.first_groups
        if probes is None:
            first_groups = first_groups[[0, -1]]
            probes = first_groups.new_zeros((count, 1))
        of_pair = first_groups.diff()[probes]  # [m, p]
        ends = of_pair.cumsum(dim=1)
        return Layout(first_groups, probes, ends - of_pair, ends, max(1, int(ends[:, -1].max())))

    def numbers(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Numbers, through all lists, of the groups at ``columns`` ``[r, w]`` of ``rows`` ``[r]``: int64 ``[r, w]``."""
        import torch

        ends = self.ends[rows]
        place = torch.searchsorted(ends, columns, right=True).clamp_(max=ends.shape[1] - 1)  # Among the probed lists.
        within = columns - self.begins[rows].gather(1, place)
        return self.first_groups[self.probes[rows].gather(1, place)] + within


@dataclass(frozen=True)
class Best:
    """The best score of each group that a query is compared with."""

    table: Tensor
    """Half ``[m, layout.width]``, minus infinity beyond the end of a row."""
    layout: Layout

    @staticmethod
    def of(part: Part, operand: Tensor, layout: Layout) -> "Best":
        """Scores the left operands ``operand`` half ``[m, c]`` with all vectors of their lists."""
        table = operand.new_full((len(operand), layout.width), -float("inf"))
        multiply = _by_triton if operand.device.type == "cuda" and _has_triton() else _by_torch
        multiply(part, operand, layout, table)
        return Best(table, layout)

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
        groups = torch.where(values > -torch.inf, self.layout.numbers(rows, at), -1)
        everything = values.shape[1] == table.shape[1]
        return groups, values.new_full((len(rows),), -torch.inf) if everything else values[:, -1]

    def _of(self, rows: Tensor) -> Tensor:
        return self.table if len(rows) == len(self.table) else self.table[rows]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _by_triton(part: Part, operand: Tensor, layout: Layout, table: Tensor) -> None:
    """Fills ``table``."""
    from retro_ops.search import gpu_kernels

    seats, listed = _seats(layout.probes.reshape(-1), len(layout.first_groups) - 1)
    probes = layout.probes.shape[1]
    gpu_kernels.best_scores(operand, part.vectors, layout.first_groups, seats, listed, probes, layout.begins, table)


def _by_torch(part: Part, operand: Tensor, layout: Layout, table: Tensor) -> None:
    """The same as ``_by_triton``, list by list."""
    import torch

    lists, begins = layout.probes.reshape(-1), layout.begins.reshape(-1)
    firsts = layout.first_groups.tolist()
    sizes = torch.bincount(lists, minlength=len(firsts) - 1).tolist()
    of_lists = torch.argsort(lists).split(sizes)  # Pairs of a query and a list, by list.
    for (first, end), pairs in zip(pairwise(firsts), of_lists, strict=True):
        for some in pairs.split(max(1, MOST_SCORES // max(1, (end - first) * GROUP))):
            rows = some // layout.probes.shape[1]
            found = scores(operand[rows], part.vectors[first * GROUP : end * GROUP])
            columns = begins[some, None] + torch.arange(end - first, device=rows.device)
            table[rows[:, None], columns] = found.reshape(len(some), end - first, GROUP).amax(dim=-1)


def _seats(lists: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Assigns pairs of a query and a list to query tiles: up to ``side`` pairs of one list, multiplied together.

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
