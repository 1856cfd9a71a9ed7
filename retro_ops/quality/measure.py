"""Measures the stored neighbours of a split: recall against exact search, duplicates, leakage, distances.

Fill rate and distances count every row. The other figures come from a sample with equal parts for all categories, drawn
with another seed than the sample on which the search was tuned. Means over categories are weighted by their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.execution import report
from retro_ops.index import faiss_index
from retro_ops.index.faiss_files import load_index
from retro_ops.index.ivf_file import open_lists
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan, Shard, Split, category
from retro_ops.search import chunk_reader, filters, open_index, tuning
from retro_ops.search.brute_force import exact_search
from retro_ops.search.exact import Keys, unpack
from retro_ops.search.hits import Queries
from retro_ops.search.queries import join, take_rows
from retro_ops.search.row_figures import DISTANCE_BINS, RowFigures
from retro_ops.search.samples import Drawn
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import open_npy

BLOCK_ROWS = 65_536

DUPLICATE_OVERLAP = 0.8
"""A neighbour is a near-duplicate if it shares more than this share of its tokens with the chunk."""

LEAKED_SHARE = 0.5
"""A row is leaked if a neighbour contains a run of more than this share of the chunk's tokens."""

RUN_BINS = np.linspace(0, 1, 17)
"""Bins of the longest shared run, as a share of the chunk."""

WORST_ROWS = 20
"""Rows of each kind that the card names for readers to look at."""

RATES = ("recall", "full_rows", "same_document", "near_duplicate", "identical", "leaked")


@dataclass(frozen=True)
class Sampled:
    """Sampled rows of one shard, with their stored neighbours."""

    shard: Shard
    rows: NDArray[np.int64]
    queries: Queries
    neighbours: NDArray[np.int64]
    distances: NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """What was found about each sampled row, all ``[rows]``: its recall (NaN if nothing should be found), whether a
    neighbour is identical, and the longest shared run as a share of the chunk."""

    recall: NDArray[np.float64]
    identical: NDArray[np.bool_]
    longest_run: NDArray[np.float64]


def with_neighbours(plan: Plan, drawn: Sequence[Drawn]) -> list[Sampled]:
    """The sampled rows with their neighbours, which must be stored."""
    return read_ahead.side_by_side(lambda of: _sampled(plan, of), drawn, read_ahead.READERS)


def true_neighbours(
    plan: Plan, split: Split, chunks: chunk_reader.IndexedChunks, drawn: Sequence[Drawn], device: Device
) -> Keys:
    """Keys ``[rows, k]`` of the neighbours of the sampled rows by brute force."""
    queries, k = join([entry.queries for entry in drawn]), plan.parameters.num_neighbours
    hit_filter = open_index.hit_filter(chunks, open_index.limits(plan.parameters, split), plan.identity.pad_id)
    return exact_search(queries, k, chunks.blocks, hit_filter, compare=open_index.comparer(device)).keys


def measure(
    plan: Plan, split: Split, chunks: chunk_reader.IndexedChunks, drawn: Sequence[Sampled], truth: Keys
) -> dict[str, Any]:
    """All figures of ``split``, which docs/quality.md explains. ``truth``: of the sampled rows."""
    queried = plan.queried(split)
    figures = read_ahead.side_by_side(partial(_whole, plan), queried, read_ahead.READERS)
    whole = {shard.name: figure for shard, figure in zip(queried, figures, strict=True)}
    categories = sorted({category(name) for name in whole})
    rows = {name: sum(w.rows for shard, w in whole.items() if category(shard) == name) for name in categories}
    rates, judged = _rates(plan, chunks, drawn, truth)
    by_category = {
        name: {
            "rows": rows[name],
            "all_rows_full": sum(w.full for s, w in whole.items() if category(s) == name) / max(1, rows[name]),
            **rates[name],
        }
        for name in categories
        if name in rates
    }
    total = sum(rows.values())
    return {
        "rows": total,
        "fill_rate": sum(w.full for w in whole.values()) / total if total else 1.0,
        "sampled_rows": sum(len(entry.rows) for entry in drawn),
        **{
            rate: sum(rates[name][rate] * rows[name] for name in rates) / sum(rows[name] for name in rates)
            if rates
            else float(rate == "recall")  # Without queries no neighbour is missing.
            for rate in RATES
        },
        "categories": by_category,
        "distances": {
            "bins": DISTANCE_BINS.round(4).tolist(),
            "nearest": np.sum([w.nearest for w in whole.values()], axis=0, dtype=np.int64).tolist(),
            "last": np.sum([w.last for w in whole.values()], axis=0, dtype=np.int64).tolist(),
        },
        "longest_shared_run": {
            "bins": RUN_BINS.tolist(),
            "rows": np.histogram(judged.longest_run, RUN_BINS)[0].tolist(),
        },
        "worst": worst_rows(drawn, judged),
        "index": _index_figures(paths.index_uri(plan, split), drawn),
    }


def _sampled(plan: Plan, drawn: Drawn) -> Sampled:
    neighbours = open_npy(paths.neighbours_uri(plan, drawn.shard.name), ndim=2, kind="i")
    distances = open_npy(paths.distances_uri(neighbours.uri), ndim=2, kind="f")
    found = take_rows(neighbours, drawn.rows), take_rows(distances, drawn.rows)
    return Sampled(drawn.shard, drawn.rows, drawn.queries, *found)


def _whole(plan: Plan, shard: Shard) -> RowFigures:
    """Figures of one shard that count every row: as retrieval counted them, or counted here."""
    done = report.read(paths.report_uri(plan, "retrieve-neighbours", shard.name))
    if done and (counted := RowFigures.of_report(done)):
        return counted
    neighbours = open_npy(paths.neighbours_uri(plan, shard.name), ndim=2, kind="i")
    distances = open_npy(paths.distances_uri(neighbours.uri), ndim=2, kind="f")
    figures = RowFigures()
    for (_, ids), (_, of_ids) in zip(neighbours.blocks(BLOCK_ROWS), distances.blocks(BLOCK_ROWS), strict=True):
        figures.add(ids, of_ids)
    return figures


def _rates(
    plan: Plan, chunks: chunk_reader.IndexedChunks, drawn: Sequence[Sampled], true_keys: Keys
) -> tuple[dict[str, dict[str, Any]], Judged]:
    """Figures of the sample by category, and what was found about each row."""
    if not drawn:
        return {}, Judged(np.zeros(0), np.zeros(0, bool), np.zeros(0))
    queries = join([entry.queries for entry in drawn])
    stored = np.concatenate([entry.neighbours for entry in drawn])
    names = np.concatenate([np.full(len(entry.rows), category(entry.shard.name)) for entry in drawn])
    truth, _ = unpack(true_keys)
    hits = ((truth[:, :, None] == stored[:, None, :]) & (truth[:, :, None] >= 0)).any(axis=2).sum(axis=1)
    rows, columns = np.nonzero(stored >= 0)
    ids = stored[rows, columns]
    assert queries.tokens is not None
    own, others = queries.tokens[rows], chunks.tokens(ids)
    pairs = {
        "same_document": queries.documents[rows] == chunks.owners(ids),
        "near_duplicate": filters.overlap(own, others, plan.identity.pad_id) > DUPLICATE_OVERLAP,
        "identical": (own == others).all(axis=1),
    }
    longest = np.zeros(len(stored))
    np.maximum.at(longest, rows, filters.longest_run(own, others, plan.identity.pad_id) / own.shape[1])
    rates = {}
    for name in sorted(set(names.tolist())):
        mine, of_pair = names == name, (names == name)[rows]
        wanted = int((truth[mine] >= 0).sum())
        recall = float(hits[mine].sum() / wanted) if wanted else 1.0
        rates[name] = {
            "sampled_rows": int(mine.sum()),
            "recall": recall,
            "recall_lower_bound": tuning.lower_bound(recall, wanted),
            "full_rows": float((stored[mine] >= 0).all(axis=1).mean()),
            **{key: float(values[of_pair].mean()) if of_pair.any() else 0.0 for key, values in pairs.items()},
            "leaked": float((longest[mine] > LEAKED_SHARE).mean()),
        }
    identical = np.zeros(len(stored), bool)
    identical[rows[pairs["identical"]]] = True
    asked = (truth >= 0).sum(axis=1)
    return rates, Judged(np.where(asked > 0, hits / np.maximum(asked, 1), np.nan), identical, longest)


def worst_rows(drawn: Sequence[Sampled], judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Up to WORST_ROWS sampled rows of each kind, the worst first, as shard, row and value.

    ``lowest_recall``: below 1. ``identical``: with a neighbour of the same tokens. ``leaked``: the longest runs above
    LEAKED_SHARE.
    """
    shards = [entry.shard.name for entry in drawn for _ in entry.rows]
    rows = [int(row) for entry in drawn for row in entry.rows]
    kinds = {
        "lowest_recall": (judged.recall, judged.recall < 1),  # NaN is not below 1.
        "identical": (-judged.identical.astype(np.float64), judged.identical),
        "leaked": (-judged.longest_run, judged.longest_run > LEAKED_SHARE),
    }
    worst = {}
    for kind, (order, chosen) in kinds.items():
        first = [int(i) for i in np.argsort(order, kind="stable") if chosen[i]][:WORST_ROWS]
        worst[kind] = [{"shard": shards[i], "row": rows[i], "value": round(abs(float(order[i])), 4)} for i in first]
    return worst


def _index_figures(uri: str, drawn: Sequence[Sampled]) -> dict[str, Any]:
    # The list sizes and the trained part suffice; only a type without lists is loaded.
    lists = open_lists(uri)
    index = lists.empty(search=False) if lists else load_index(uri, search=False)
    sizes = lists.sizes if lists else faiss_index.list_sizes(index)
    vectors = join([entry.queries for entry in drawn]).vectors if drawn else None
    return {
        "vectors": int(sizes.sum()),
        "bytes": store.at(uri).size(uri),
        **faiss_index.figures_of(sizes),
        "quantisation_error": None if vectors is None else faiss_index.quantisation_error(index, vectors),
    }
