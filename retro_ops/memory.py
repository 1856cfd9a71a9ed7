"""How memory is divided: every share of it, and the reason for the share. Standard library only.

Bytes that are read ahead are constant. Two amounts are divided:

- the **memory budget** (``--memory-budget``) of a stage, beside its model and its index;
- the **memory limit of an index** (``--search-memory``, else most of the memory of the machine).

The shares of one step add up to no more than the whole. Every amount is in bytes. The limit on the length of a line is
a share of the budget, too, but it decides content, so it stands with the digests: ``plan.digests.line_limit``.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from retro_ops.sizes import limit_in_words

READER_BYTES = 64 * 2**20
"""Bytes that one reader has in flight: requests to the store that run, and answers that wait for the caller. Eight
requests of 8 MiB, since a connection to a store gives some 85 MB/s; smaller requests are more of them."""

READERS_BYTES = 256 * 2**20
"""Bytes that all readers of a process have in flight. Above it a reader has one request at a time."""

SHARE_FOR_AN_INDEX = 0.75
"""Share of the memory of the machine. The rest is for the operating system, the libraries and unforeseen growth."""

SHARE_FOR_A_BUDGET = 0.25
"""Share of the memory of a container, beside an index that takes the rest of SHARE_FOR_AN_INDEX."""

LEAST_FOR_AN_INDEX = 2**26
"""An index may always take this much, however large the budget: less would read it in tiny parts."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that an index may take in memory, and the reason for the number."""

    bytes: int
    why: str


def index_limit(requested: int | None, budget: int) -> MemoryLimit:
    """Limit of an index: the ``requested`` one, else most of the memory of this machine or container."""
    if requested is not None:
        return MemoryLimit(requested, "--search-memory")
    available = _available()
    left = max(LEAST_FOR_AN_INDEX, int(available * SHARE_FOR_AN_INDEX) - budget)
    return MemoryLimit(left, f"three quarters of {limit_in_words(available)}, less the memory budget")


def at_least_of_container(budget: int) -> int:
    """A ``budget`` at its default: a quarter of the memory of this container where that is more. A machine without
    such a limit may be shared by several tasks, so there it stays."""
    limit = _cgroup_memory()
    return max(budget, int(limit * SHARE_FOR_A_BUDGET)) if limit else budget


def training_sample(budget: int | None) -> MemoryLimit:
    """Limit of the training sample: all of the memory ``budget``, since training holds little else.

    Without a budget it is three eighths of the memory of this machine or container: transforms and faiss copy vectors.
    """
    if budget is not None:
        return MemoryLimit(budget, "--memory-budget")
    available = _available()
    return MemoryLimit(int(available * SHARE_FOR_AN_INDEX / 2), f"three eighths of {limit_in_words(available)}")


# Shares of the memory budget.


def search_batch(budget: int) -> int:
    """Half: the queries of a search and their candidates. The other half is for the blocks of embeddings that are read
    ahead, kept, and widened to float32 while they are scored."""
    return budget // 2


def open_parts(budget: int) -> int:
    """Half: the writers of all parts that `split-corpus` has open. The other half is for the lines on their way."""
    return budget // 2


def hashed_texts(budget: int) -> int:
    """All: texts are grouped by hash before anything else of `find-duplicates` is in memory."""
    return budget


def benchmark_texts(budget: int) -> int:
    """An eighth: the benchmark texts that documents are compared with, in the process of `sign-documents`."""
    return budget // 8


def benchmark_copies(budget: int) -> int:
    """Half: the same texts in the processes that it starts, which are no more than have room for them."""
    return budget // 2


def candidate_pairs(budget: int) -> int:
    """Half: pairs of documents that wait to be compared, beside the keys of a band or the signatures of the pairs."""
    return budget // 2


def band_keys(budget: int) -> int:
    """Half: keys of the bands that are read together, beside the pairs that wait."""
    return budget // 2


def pair_signatures(budget: int) -> int:
    """A quarter: numbers of the signatures that are compared at a time, beside the pairs that wait."""
    return budget // 4


def transposed_signatures(budget: int) -> int:
    """An eighth: columns of the signatures of a shard that are filled in one pass over its scratch file. Fewer columns
    at a time only cost further passes."""
    return budget // 8


def answer(budget: int) -> int:
    """A sixteenth: embeddings or texts that `serve` answers a request with. They are in memory up to three times, after
    the search."""
    return budget // 16


# Shares of the memory limit of an index that is larger than it, so that its lists are read part by part.


def lists_at_once(limit: int) -> int:
    """A third: lists as they are read. A second third holds them once more, as faiss or the store takes them."""
    return limit // 3


def queries_at_once(limit: int) -> int:
    """The last third: queries that search these lists, with their candidates."""
    return limit // 3


def _available() -> int:
    """Memory of this machine or container."""
    return min(limit for limit in (_machine_memory(), _cgroup_memory()) if limit)


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_memory() -> int | None:
    """Memory limit of the container, None if it has none. Control groups of version 2, then version 1."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path("/sys/fs/cgroup", name).read_text())
    return None
