"""Products of lists with the queries that probe them, in Triton.

Needs a C compiler on the first run, and is imported only where there is a GPU.
"""

import torch
import triton
import triton.language as tl

from retro_ops.search.gpu_part import GROUP

VECTORS = (64, 128)
"""Vectors multiplied at a time where lists are short, and where they are long."""

DEPTH = 64
"""Columns of the operands multiplied at a time."""

PROGRAMS = 2048
"""Enough to keep a GPU busy: if there are fewer query tiles, several programs share the list of each."""


def best_scores(
    operand: torch.Tensor,
    vectors: torch.Tensor,
    first_groups: torch.Tensor,
    seats: torch.Tensor,
    listed: torch.Tensor,
    probes: int,
    columns: torch.Tensor,
    table: torch.Tensor,
) -> None:
    """Writes the best score of each group of a list to the rows of the queries that probe it.

    ``operand`` half ``[m, c]`` and ``vectors`` half ``[slots, c]``: operands of scores; ``first_groups`` int64
    ``[lists + 1]``; ``seats`` int64 ``[query tiles, side]``: pairs of a query and one of its ``probes`` lists (query *
    probes + number), -1 for none; ``listed`` int64 ``[query tiles]``: their list; ``columns`` int64 ``[m, probes]``:
    the column of ``table`` half ``[m, w]`` where the groups of a pair begin.
    """
    if not len(listed):
        return
    side = seats.shape[1]
    usual = len(vectors) // max(1, len(first_groups) - 1)
    some = VECTORS[usual >= 8 * VECTORS[1]]
    shares = max(1, min(-(-PROGRAMS // len(listed)), -(-usual // some)))
    with torch.cuda.device(operand.device):  # Triton launches on the current device of the thread.
        _best_scores[(len(listed), shares)](
            operand,
            vectors,
            first_groups,
            seats,
            listed,
            columns,
            table,
            table.stride(0),
            probes,
            width=operand.shape[1],
            side=side,
            some=some,
            group=GROUP,
            depth=DEPTH,
            num_warps=4 if side < 128 else 8,
            num_stages=3,
        )


# Triton evaluates annotations and accepts only its own types. These two numbers differ from batch to batch, and Triton
# would compile the kernel again for numbers with other factors.
@triton.jit(do_not_specialize=["table_width", "probes"])  # type: ignore[untyped-decorator]
def _best_scores(  # type: ignore[no-untyped-def]
    operand, vectors, first_groups, seats, listed, columns, table, table_width, probes,
    width: tl.constexpr, side: tl.constexpr, some: tl.constexpr, group: tl.constexpr, depth: tl.constexpr
):  # fmt: skip
    """Multiplies a query tile with its list, ``some`` vectors at a time. Programs that share a list take turns.

    Triton knows that ``width`` is a multiple of eight only if it is a constant, and then loads eight halves at once.
    """
    tile = tl.program_id(0).to(tl.int64)
    pair = tl.load(seats + tile * side + tl.arange(0, side))
    seated = pair >= 0
    pair = tl.where(seated, pair, 0)
    row = pair // probes
    column = tl.load(columns + pair)
    of = tl.load(listed + tile)
    first = tl.load(first_groups + of)
    end = tl.load(first_groups + of + 1)
    groups: tl.constexpr = some // group
    for at in range(first + tl.program_id(1) * groups, end, tl.num_programs(1) * groups):
        slot = at * group + tl.arange(0, some)
        found = tl.zeros((some, side), dtype=tl.float32)
        for start in range(0, width, depth):
            across = start + tl.arange(0, depth)
            inside = across < width
            x = tl.load(
                vectors + slot[:, None] * width + across[None, :],
                mask=(slot < end * group)[:, None] & inside[None, :],
                other=0.0,
            )
            q = tl.load(
                operand + row[None, :] * width + across[:, None], mask=seated[None, :] & inside[:, None], other=0.0
            )
            found = tl.dot(x, q, found)
        best = tl.max(tl.reshape(found, (groups, group, side)), axis=1)
        number = at + tl.arange(0, groups)
        tl.store(
            table + row[None, :] * table_width + column[None, :] + (number - first)[:, None],
            best.to(tl.float16),
            mask=seated[None, :] & (number < end)[:, None],
        )
