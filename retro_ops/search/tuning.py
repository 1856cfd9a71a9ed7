"""Tunes nprobe and candidates: the cheapest that reach a target recall on a sample, measured against exact search.

With exact distances for every candidate, a true neighbour is found if and only if it is among the candidates. So:

1. An exact search gives the true neighbours of the sample.
2. One wide search for each nprobe (1, 2, 4, …) gives the ranks of the true neighbours among its candidates, and with
   them the recall of every number of candidates. Where whole vectors are searched, the ranks follow from the lists
   that hold the true neighbours and all nearer hits, without another search.
3. Of all pairs whose recall is above the target with confidence, the cheapest is chosen.

Rows that stay short are widened on top of that, so a run finds as much or more.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.search.exact import NOTHING, Keys, unpack
from retro_ops.search.hits import NONE_REMOVED, Queries, Removed, Truth
from retro_ops.search.reranking import Index, WholeVectors, Width, coarse_ids

MOST_CANDIDATES = 1024

NOT_FOUND = 2**62

COST_OF_A_CANDIDATE = 40
"""Cost of reading and scoring one stored embedding, in codes scanned in an inverted list."""

CONFIDENCE = 1.64
"""In standard errors: the recall is above its lower bound with 95 % confidence."""

TABLE_CANDIDATES = (4, 16, 64, 256, 1024)

SearchedBy = Literal["codes", "vectors"]


@dataclass(frozen=True)
class Choice:
    """``recall`` of ``width`` on the sample, and the bound it exceeds with 95 % confidence."""

    width: Width
    recall: float
    lower_bound: float
    reached: bool


@dataclass(frozen=True)
class Trial:
    """Recall on the sample with ``nprobe`` lists, by number of candidates."""

    nprobe: int
    ranks: NDArray[np.int64]
    """Rank of each true neighbour among the candidates, NOT_FOUND where it is not there."""

    def recall(self, candidates: int) -> float:
        return float((self.ranks < candidates).mean()) if len(self.ranks) else 1.0


def trials(
    queries: Queries, truth: Keys, index: Index, fixed_nprobe: int | None = None, nearer: Removed = NONE_REMOVED
) -> list[Trial]:
    """A trial for 1, 2, 4, … lists, or for ``fixed_nprobe`` alone.

    ``truth``: keys ``[m, k]`` of an exact search; ``nearer``: the hits that are candidates before them. Both are needed
    where whole vectors are searched: there nothing is searched again, since a chunk is found if and only if its list
    is probed, and its place among the candidates is the number of nearer ones that are found as well.
    """
    tried = [fixed_nprobe] if fixed_nprobe else _doublings(index.lists)
    if index.vectors:
        return _trials_by_lists(queries, truth, nearer, index.vectors, [min(nprobe, index.lists) for nprobe in tried])
    made = []
    for nprobe in tried:
        width = index.clip(Width(nprobe, MOST_CANDIDATES))
        made.append(Trial(width.nprobe, _ranks(coarse_ids(index, queries.vectors, width), truth)))
    return made


def _trials_by_lists(
    queries: Queries, truth: Keys, nearer: Removed, vectors: WholeVectors, tried: Sequence[int]
) -> list[Trial]:
    rows, columns = np.nonzero(truth != NOTHING)
    rows, keys = np.concatenate((rows, nearer.rows)), np.concatenate((truth[rows, columns], nearer.keys))
    is_truth = np.arange(len(rows)) < len(columns)
    order = np.lexsort((keys, rows))
    rows, keys, is_truth = rows[order], keys[order], is_truth[order]
    first = np.searchsorted(rows, rows)  # Of the hits of the same query.
    lists = vectors.list_ranks(queries.vectors, rows, unpack(keys)[0])

    def ranks(nprobe: int) -> NDArray[np.int64]:
        found = lists < nprobe
        before: NDArray[np.int64] = np.cumsum(found) - found
        return np.where(found, before - before[first], NOT_FOUND)[is_truth]

    return [Trial(nprobe, ranks(nprobe) if len(rows) else np.zeros(0, np.int64)) for nprobe in tried]


def choose(made: Sequence[Trial], target: float, index: Index, least: int) -> Choice:
    """The cheapest width whose recall is above ``target`` with confidence, else the one with the best recall.

    ``least``: fewest candidates to consider.
    """
    return _cheapest(made, _candidate_counts(least, index.clip(Width(1, MOST_CANDIDATES)).candidates), target, index)


def choose_nprobe(made: Sequence[Trial], candidates: int, target: float, index: Index) -> Choice:
    """The cheapest nprobe for a fixed number of ``candidates``, chosen in the same way."""
    return _cheapest(made, [candidates], target, index)


def _cheapest(made: Sequence[Trial], counts: Sequence[int], target: float, index: Index) -> Choice:
    widths = [
        (Width(trial.nprobe, candidates), trial.recall(candidates), len(trial.ranks))
        for trial in made
        for candidates in counts
    ]
    good = [entry for entry in widths if lower_bound(entry[1], entry[2]) >= target]
    if good:
        width, recall, count = min(good, key=lambda entry: (_cost(entry[0], index), entry[0].nprobe))
    else:
        width, recall, count = max(widths, key=lambda entry: (entry[1], -_cost(entry[0], index)))
    return Choice(width, recall, lower_bound(recall, count), reached=bool(good))


def _ranks(candidates: NDArray[np.int64], truth: Keys) -> NDArray[np.int64]:
    """Place of each true neighbour in its row of candidates: int64, flat."""
    ids, _ = unpack(truth)
    ranks = []
    for row, wanted in zip(candidates, ids, strict=True):
        order = np.argsort(row, kind="stable")
        wanted = wanted[wanted >= 0]
        places = np.minimum(np.searchsorted(row, wanted, sorter=order), len(row) - 1)
        found = row[order[places]] == wanted
        ranks.append(np.where(found, order[places], NOT_FOUND))
    return np.concatenate(ranks) if ranks else np.zeros(0, np.int64)


def _doublings(limit: int) -> list[int]:
    return [*(1 << power for power in range(limit.bit_length()) if 1 << power < limit), limit]


def _candidate_counts(least: int, most: int) -> list[int]:
    """Steps of a quarter from ``least`` to ``most``."""
    counts = [min(least, most)]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, counts[-1] * 5 // 4)))
    return counts


def _cost(width: Width, index: Index) -> float:
    # The search of whole vectors takes no number of candidates.
    candidates = 0 if index.whole() else width.candidates
    return width.nprobe * index.total / index.lists + candidates * COST_OF_A_CANDIDATE


def lower_bound(recall: float, count: int) -> float:
    """Lower bound of a share that was measured on ``count`` cases (Wilson's score interval, one-sided)."""
    if not count:
        return 1.0
    z = CONFIDENCE**2 / count
    spread = math.sqrt(recall * (1 - recall) * z + z * z / 4)
    return (recall + z / 2 - spread) / (1 + z)


@dataclass(frozen=True)
class Tuned:
    """The tuned width for an index of ``vectors``, and its recall on ``sample`` queries; None: exact search."""

    width: Width | None
    vectors: int
    sample: int
    recall: float
    lower_bound: float
    target: float
    reached: bool
    searched: SearchedBy
    """Whole vectors find more neighbours than codes in the same lists, so a width fits only one of the two."""
    table: list[dict[str, Any]]
    """Measured recall by nprobe and candidates."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def width_from_json(entry: dict[str, Any]) -> Width | None:
    return Width(**entry["width"]) if entry["width"] else None


def tune(queries: Queries, index: Index, parameters: Parameters, known: Truth | None = None) -> Tuned:
    """Tune on ``queries`` (a sample) for ``target_recall``; nprobe and candidates that were given are only measured.

    ``known``: the true neighbours of ``queries``, where they were found before.
    """
    k, target = parameters.num_neighbours, parameters.target_recall
    searched: SearchedBy = "vectors" if index.vectors else "codes"
    if target >= 1:
        return Tuned(None, index.total, len(queries), 1.0, 1.0, target, reached=True, searched=searched, table=[])
    truth = known or Truth(*index.nearer_hits(queries, k))
    made = trials(queries, truth.keys, index, parameters.nprobe, truth.nearer)
    if parameters.retrieval_margin is None:
        choice = choose(made, target, index, least=k)
    else:
        candidates = index.clip(Width(1, k + parameters.retrieval_margin)).candidates
        choice = choose_nprobe(made, candidates, target, index)
    table = [
        {"nprobe": trial.nprobe, **{f"recall_at_{count}": round(trial.recall(count), 4) for count in TABLE_CANDIDATES}}
        for trial in made
    ]
    said = "" if choice.reached else "; no setting of this index reaches the target with confidence"
    say(
        f"tuning: recall {choice.recall:.4f} (above {choice.lower_bound:.4f} with 95 % confidence, target "
        f"{target}) on {len(queries):,} queries with nprobe {choice.width.nprobe} and "
        f"{choice.width.candidates} candidates{said}"
    )
    return Tuned(
        *(choice.width, index.total, len(queries), choice.recall, choice.lower_bound, target, choice.reached),
        searched=searched,
        table=table,
    )
