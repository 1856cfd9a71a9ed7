"""The sampled queries of `tune-search` and `describe`, and their true neighbours.

The true neighbours of a sample are those of brute force in the whole index. They are found here, or, for a large index,
part by part in `search-samples` (``plan.sample_parts``) and merged: the ``k`` smallest keys of all parts are the
neighbours, and a removed hit counts if it is nearer than the last of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.index.sampling import sample_rows
from retro_ops.plan import digests, paths, sample_parts, views
from retro_ops.plan.plan import Plan, Shard, Split, category
from retro_ops.plan.sample_parts import SamplePart
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.hits import Queries, Removed, Truth, merged
from retro_ops.search.open_index import limits
from retro_ops.search.queries import QueryShard, join, query_shards, sample, take
from retro_ops.storage import read_ahead
from retro_ops.storage.base import Written
from retro_ops.storage.npy import NpyWriter, open_npy
from retro_ops.uris import join as joined_uri

Purpose = Literal["tuning", "card"]

FILES = ("keys", "rows", "hits", "reasons")


@dataclass(frozen=True)
class Drawn:
    """Sampled rows of one shard."""

    shard: Shard
    rows: NDArray[np.int64]
    queries: Queries


def for_tuning(plan: Plan, split: Split, chunks: IndexedChunks, count: int, seed: int) -> Queries:
    """A uniform sample of ``count`` queries of ``split``, with tokens where a filter compares them."""
    shards = query_shards(plan, split, chunks, with_tokens=bool(limits(views.searched(plan.parameters), split)))
    return sample(list(shards.values()), count, seed)


def for_card(plan: Plan, split: Split, chunks: IndexedChunks) -> list[Drawn]:
    """``recall_sample`` queries in equal parts from all categories; smaller categories are used in full."""
    by_category: dict[str, list[Shard]] = {}
    for shard in plan.queried(split):
        by_category.setdefault(category(shard.name), []).append(shard)
    wanted = -(-plan.parameters.recall_sample // max(1, len(by_category)))
    drawn: list[tuple[Shard, QueryShard, NDArray[np.int64]]] = []
    asking = query_shards(plan, split, chunks, with_tokens=True)
    for number, shards in enumerate(by_category.values()):
        queries = [asking[shard.name] for shard in shards]
        counts = np.array([len(shard) for shard in queries], np.int64)
        rows = sample_rows(counts, wanted, plan.parameters.seed + 1 + number)
        drawn += [entry for entry in zip(shards, queries, rows, strict=True) if len(entry[2])]
    return read_ahead.side_by_side(lambda of: Drawn(of[0], of[2], take(of[1], of[2])), drawn, read_ahead.READERS)


def samples(plan: Plan, split: Split, chunks: IndexedChunks) -> dict[Purpose, Queries]:
    """The samples whose true neighbours a run of ``plan`` needs, with tokens where a filter compares them."""
    p, found = plan.parameters, dict[Purpose, Queries]()
    if is_tuned(plan):
        found["tuning"] = for_tuning(plan, split, chunks, p.recall_sample, p.seed)
    if drawn := for_card(plan, split, chunks):
        together = join([of.queries for of in drawn])
        filtered = bool(limits(p, split))
        found["card"] = together if filtered else Queries(together.vectors, together.documents)
    return found


def largest_index(plan: Plan) -> IndexedChunks:
    """The chunks of the index of the last split, which begin with those of every other one."""
    return IndexedChunks(paths.index_shards(plan, plan.splits()[-1]))


def is_tuned(plan: Plan) -> bool:
    """Whether `tune-search` measures anything in a run of ``plan``."""
    p = plan.parameters
    return p.profile != "seed" and p.target_recall < 1 and not (plan.base and plan.base.tuning)


def write_truth(folder: str, split: Split, purpose: Purpose, truth: Truth) -> Iterator[Written]:
    """Write the truth of a part to ``folder``."""
    arrays: list[NDArray[Any]] = [truth.keys, truth.nearer.rows, truth.nearer.keys, truth.nearer.reasons]
    for name, array in zip(FILES, arrays, strict=True):
        with NpyWriter(_uri(folder, split, purpose, name), array.dtype, array.shape[1:], rows=len(array)) as writer:
            writer.append(array)
            yield writer.close()


def found_in_parts(plan: Plan, plan_uri: str, split: Split, purpose: Purpose, rows: int) -> Truth | None:
    """What `search-samples` found for a sample of ``rows`` queries; None if the index is too small for parts.

    BadInputError if a part is missing, or was searched for another sample.
    """
    parts = sample_parts.parts(largest_index(plan).total)
    if not parts:
        return None
    return merged(read_ahead.side_by_side(lambda part: _read(plan, plan_uri, part, split, purpose, rows), parts))


def _read(plan: Plan, plan_uri: str, part: SamplePart, split: Split, purpose: Purpose, rows: int) -> Truth:
    folder = paths.sample_folder(plan, plan_uri, part)
    done = report.read(joined_uri(folder, paths.REPORT))
    remedy = f"run `retro-ops search-samples --part {part.name}` first"
    if done is None or done["digest"] != digests.samples_digest(plan):
        raise BadInputError(f"{folder} does not exist", remedy)
    readers = [open_npy(_uri(folder, split, purpose, name)) for name in FILES]
    keys, of_rows, hits, reasons = (reader.rows(0, len(reader)) for reader in readers)
    if len(keys) != rows:
        raise BadInputError(f"{folder} has {len(keys):,} {purpose} queries of {split}, not {rows:,}", remedy)
    return Truth(keys, Removed(of_rows, hits, reasons))


def _uri(folder: str, split: Split, purpose: Purpose, name: str) -> str:
    return joined_uri(folder, f"{split}.{purpose}.{name}.npy")
