"""Retrieves the neighbours of one query shard (profile `default`): wide search, exact distances, widening.

The search itself is in ``reranking``; here it is decided how much of a shard is searched at a time, and how:

1. nprobe and candidates are those that `tune-search` measured; without it they are measured here.
2. Rows are searched in batches, as many at a time as a share of the memory budget holds: each batch reads embeddings,
   those of its candidates or, where whole vectors are searched and do not fit on the devices, all of them. There only
   what was found so far is held for a row, so a batch has some ten times as many rows.
3. A shard that has neighbours in the base version is brought up to date (``incremental``).
4. A shard smaller than a batch is searched together with the shards that follow it.
5. Any other batch is searched in the whole index.
6. With `keep_neighbours`, all of this finds the neighbours to keep, and those of the version are taken from them
   (``kept_neighbours``).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory, uris
from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.execution import budgets, report
from retro_ops.execution.checkpoints import Part
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Split
from retro_ops.progress import say
from retro_ops.search import incremental, reranking
from retro_ops.search.brute_force import exact_search
from retro_ops.search.chunk_reader import IndexedChunks
from retro_ops.search.exact import NOTHING, Keys, unpack
from retro_ops.search.filters import REASONS
from retro_ops.search.hits import Found, QueryRows, row_bytes
from retro_ops.search.jobs import Job
from retro_ops.search.kept_neighbours import Taken, View
from retro_ops.search.merged_cells import MergedCells
from retro_ops.search.open_index import SearchedIndex, hit_filter, limits
from retro_ops.search.queries import QueryShard, StoredRows, open_arrays, other_shard, query_shard, sample
from retro_ops.search.reranking import Effort
from retro_ops.search.tuning import tune, width_from_json
from retro_ops.storage import store

EXACT_CANDIDATES = 64
"""Candidates that a row of an exact search counts for: it holds its k best, and a step of it few rows."""

CANDIDATE_BYTES = 48
"""Memory of a candidate while it is scored: id, order, key, distance, and copies on the way."""


def searched_index(job: Job, parameters: Parameters, device: Device) -> SearchedIndex:
    """The index of ``job``, and of all jobs that search the same."""
    chunks = IndexedChunks(job.indexed)
    pad_id = _pad_id(job, parameters)
    return SearchedIndex(job.index, chunks, device, parameters, job.split, pad_id, job.trained, job.partials)


@dataclass(frozen=True)
class _Batch:
    """Keys ``[rows, k]`` of the neighbours of a batch, and of all that were ``kept``, where that is wanted."""

    neighbours: Keys
    kept: Keys | None = None

    def part(self, start: int, stop: int) -> Part:
        """Rows ``start:stop`` of the batch as they are written."""
        found: dict[str, NDArray[Any]] = {}
        for prefix, keys in (("", self.neighbours), ("kept_", self.kept)):
            if keys is not None:
                found[f"{prefix}neighbours"], found[f"{prefix}distances"] = unpack(keys[start:stop])
        return found


class Retriever:
    """Finds the neighbours of the query shard of ``job`` in ``searched``, a batch of rows at a time.

    The caller takes ``block_rows`` rows at a time; ``batch_rows``, the rows of a batch, are a multiple of them.
    """

    def __init__(self, job: Job, searched: SearchedIndex, block_rows: int, chosen: Parameters) -> None:
        """``chosen``: the parameters of the run; those of ``searched`` are of its search (``plan.views``)."""
        self._job, self._searched = job, searched
        self._parameters = searched.parameters
        self._k = self._parameters.num_neighbours
        filters = limits(chosen, job.split)
        passing = hit_filter(searched.chunks, filters, searched.pad_id)
        self._view = View(chosen.num_neighbours, passing) if job.kept else None
        self._shard = open_query_shard(job, searched, filtered=bool(filters))
        self.same_document = self._shard.documents is not None
        tuned = self._tuned()
        self.details: dict[str, Any] = {"search": tuned}
        self._width = width_from_json(tuned)
        # Of few rows, and the same in each run, so that a view does not depend on the versions before it.
        self._width_again = self._width.widened() if self._width else None
        if self._width and job.few:
            # It may have been tuned for other chunks. Few rows are cheap to search, so rather too wide.
            self._width = self._width.widened()
        say(f"retrieve-neighbours: {self._width or 'exact search'}, {searched.device.chosen} ({searched.device.why})")
        batch = memory.search_batch(budgets.budget(self._parameters))
        self._cells = batch // CANDIDATE_BYTES
        self.batch_rows = max(block_rows, batch // self._row_bytes() // block_rows * block_rows)
        self._update = self._open_update()
        self._effort, self._removed, self._taken = Effort(), np.zeros(len(REASONS), np.int64), Taken()
        self._batch_start, self._batch = 0, _Batch(Found.nothing(0, self._k).keys)

    def search_rows(self, start: int, stop: int) -> Part:
        """The neighbours of rows ``start:stop``, as ``neighbours_writer.Search`` says.

        Call it for consecutive ranges, each of which lies in one batch. A batch begins with the first row that was not
        searched yet.
        """
        if start >= self._batch_start + len(self._batch.neighbours):
            found = self._search_batch(start)
            self._removed += found.removed.sum(axis=0)
            self._batch_start, self._batch = start, self._taken_from(found, start)
        return self._batch.part(start - self._batch_start, stop - self._batch_start)

    def tally(self) -> dict[str, Any]:
        """Counts over all batches so far, as JSON whose numbers add up."""
        return {
            "effort": asdict(self._effort),
            "removed": dict(zip(REASONS, self._removed.tolist(), strict=True)),
            **({"updated": asdict(self._update.done)} if self._update else {}),
            **({"view": asdict(self._taken)} if self._view else {}),
        }

    def _taken_from(self, found: Found, start: int) -> "_Batch":
        """The neighbours of the rows from ``start``, where ``found`` is what the search found."""
        if self._view is None:
            return _Batch(found.keys)
        queries = StoredRows([self._shard], range(start, start + len(found.keys)))
        taken = self._view.take(queries, found.keys, self._search_again, self._taken)
        self._removed += taken.removed.sum(axis=0)
        return _Batch(taken.keys, found.keys)

    def _search_again(self, queries: QueryRows) -> Found:
        """Neighbours of the view in the whole index, some rows at a time: each has many candidates."""
        assert self._view
        view, searched = self._view, self._searched
        found = Found.nothing(len(queries), view.k)
        candidates = self._width_again.candidates if self._width_again else EXACT_CANDIDATES
        rows = max(1, self._cells // candidates)
        for start in range(0, len(queries), rows):
            part = np.arange(start, min(start + rows, len(queries)))
            some = queries.select(part)
            if self._width_again:
                index = replace(searched.index, hit_filter=view.hit_filter)
                of_part = reranking.find(some, view.k, index, self._width_again, self._cells, self._effort)
            else:  # Without an index, which would be loaded for few rows.
                read, blocks = some.read(0, len(some)), searched.chunks.blocks
                of_part = exact_search(read, view.k, blocks, view.hit_filter, compare=searched.compare)
            found.put(part, of_part)
        return found

    def _search_batch(self, start: int) -> Found:
        if self._job.cells:
            return self._merge(self._job.cells, start, min(start + self.batch_rows, len(self._shard)))
        if self._update:
            return self._update.search_rows(start, start + self.batch_rows, self._full_search)
        if start == 0 and self._job.report in self._searched.found_ahead:
            return self._searched.found_ahead.pop(self._job.report)
        if start == 0 and len(self._shard) < self.batch_rows:
            return self._search_with_following()
        return self._full_search(StoredRows([self._shard], range(len(self._shard))[start : start + self.batch_rows]))

    def _merge(self, cells: MergedCells, start: int, stop: int) -> Found:
        """Neighbours from the cells of a grid. Rows that a filter leaves short are searched in the whole index."""
        if not self._searched.hit_filter:
            return cells.neighbours(start, stop, self._effort)
        index, queries = self._searched.index, StoredRows([self._shard], range(start, stop))
        assert self._width  # Otherwise there are no cells.
        width = index.clip(self._width)
        hits = cells.hits(start, stop, width.candidates)
        found = reranking.passing(queries, self._k, index.hit_filter, *hits)
        self._effort.widened_rows += int((found.keys == NOTHING).any(axis=1).sum())
        reranking.widen(found, queries, self._k, index, width, self._cells, self._effort)
        return found

    def _full_search(self, queries: QueryRows) -> Found:
        """Neighbours in the whole index."""
        searched = self._searched
        if self._width:
            return reranking.find(queries, self._k, searched.index, self._width, self._cells, self._effort)
        if self._searches_vectors():
            return searched.index.exact(queries, self._k)
        some, blocks = queries.read(0, len(queries)), searched.chunks.blocks
        return exact_search(some, self._k, blocks, searched.hit_filter, compare=searched.compare)

    def _searches_vectors(self) -> bool:
        """Whether a GPU searches whole vectors. Without a width it does so only if there is no filter."""
        return self._searched.device.chosen == "cuda" and bool(self._width or not self._searched.hit_filter)

    def _search_with_following(self) -> Found:
        """Neighbours of this shard, found together with those of as many following shards as fit into the batch.

        Theirs are kept until their own jobs ask for them.
        """
        reports, shards, total = [self._job.report], [self._shard], len(self._shard)
        for report_uri, shard in self._following():
            total += len(shard)
            if total > self.batch_rows:
                break
            reports.append(report_uri)
            shards.append(shard)
        found = self._full_search(StoredRows.of(shards))
        ends = list(accumulate(map(len, shards)))
        parts = [found.take(slice(end - len(shard), end)) for shard, end in zip(shards, ends, strict=True)]
        self._searched.found_ahead.update(zip(reports[1:], parts[1:], strict=True))
        return parts[0]

    def _following(self) -> Iterator[tuple[str, QueryShard]]:
        """Following query shards without a report, by the URI of the report."""
        for job in self._job.following:
            if not store.exists(job.report):
                try:
                    yield job.report, open_query_shard(job, self._searched, bool(self._searched.limits))
                except BadInputError:
                    continue  # Its own job raises this again.

    def _open_update(self) -> incremental.Update | None:
        previous = self._job.previous
        if previous is None:
            return None
        new = incremental.new_chunks(previous, self._searched, self._k, self._width, self._cells)
        return incremental.Update(previous, self._shard, new)

    def _row_bytes(self) -> int:
        """Memory of a row of a batch: its candidates, its tokens and, unless they are read as they are needed, its
        embedding (also widened to float32)."""
        candidates = self._width.candidates if self._width else EXACT_CANDIDATES
        nprobe = self._width.nprobe if self._width else 0
        tokens = 2 * self._shard.tokens.row_bytes if self._shard.tokens else 0
        if self._job.cells:
            return self._job.cells.row_bytes(candidates if self._searched.hit_filter else self._k) + tokens
        if self._searches_vectors() and not self._searched.hit_filter:
            return row_bytes(self._k, nprobe) + tokens
        if self._searches_vectors():
            return row_bytes(candidates, nprobe) + candidates * CANDIDATE_BYTES + tokens
        return candidates * CANDIDATE_BYTES + 4 * self._shard.embeddings.row_bytes + tokens

    def _tuned(self) -> dict[str, Any]:
        """nprobe and candidates as `tune-search` measured them; measured here if it did not, or for another search.

        A width that was tuned on a GPU is too narrow for a CPU: as many lists give more neighbours where whole vectors
        are searched instead of codes.
        """
        job, parameters = self._job, self._parameters
        if job.tuning and job.split:
            tuned = read_tuned(job.tuning, job.split)
            if job.cells:
                return tuned
            by_codes = tuned.get("searched", "codes") == "codes"
            if self._searched.device.chosen == "cuda" or by_codes or not tuned["width"]:
                return tuned
            say("retrieve-neighbours: the search was tuned on a GPU, so it is tuned again for this CPU")
        queries = sample([self._shard], parameters.recall_sample, parameters.seed)
        return tune(queries, self._searched.index, parameters).as_json()


def read_tuned(uri: str, split: Split) -> dict[str, Any]:
    """What `tune-search` measured for ``split``, from its report at ``uri``."""
    found = report.read(uri)
    if found is None:
        raise BadInputError(f"{uri} does not exist", "run `retro-ops tune-search` with the same plan first")
    tuned: dict[str, Any] = found["details"][split]
    return tuned


def open_query_shard(job: Job, searched: SearchedIndex, filtered: bool) -> QueryShard:
    """The query shard of ``job``, with tokens if they are ``filtered``.

    BadInputError if its arrays do not belong together or to the index, or if a filter needs unknown tokens.
    """
    embeddings, _ = open_arrays(job, searched.chunks.embeddings[0])
    if job.position is not None:
        return query_shard(searched.chunks, job.position, filtered)
    if job.shard:
        return other_shard(job.shard, searched.chunks, filtered)
    if not filtered:
        return QueryShard(embeddings, None)
    raise BadInputError(
        f"{job.embeddings} is not in {job.index_spec}, so the tokens of its chunks are unknown",
        "name its shard in the index spec, or leave out --max-overlap, --max-shared-run and --max-shared-ngrams",
    )


def _pad_id(job: Job, parameters: Parameters) -> int:
    """Padding of the chunks: as in the plan, else as on the command line, else as in the report of the chunks."""
    if job.pad_id is not None:
        return job.pad_id
    if parameters.pad_id is not None:
        return parameters.pad_id
    found = report.read(uris.beside(job.indexed[0].chunks, paths.REPORT))
    return int(found["identity"]["pad_id"]) if found else 0
