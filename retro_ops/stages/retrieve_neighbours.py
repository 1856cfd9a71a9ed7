"""Embeddings + filled index -> neighbours.npy (global chunk ids) and distances.npy."""

import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from retro_ops import uris
from retro_ops.errors import BadInputError
from retro_ops.execution import report, shard_groups
from retro_ops.execution.checkpoints import Part, Unfinished
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Shard, Split
from retro_ops.plan.specs import IndexShard, index_spec_from_json
from retro_ops.progress import Progress, say
from retro_ops.sizes import parse_bytes
from retro_ops.storage import read_ahead, store
from retro_ops.storage.base import Written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retro_ops.compute.device import Device
    from retro_ops.search.chunk_reader import IndexedChunks
    from retro_ops.search.incremental import Former
    from retro_ops.search.queries import QueryShard
    from retro_ops.search.reranking import Found, Index, Queries
    from retro_ops.storage.npy import NpyReader

HELP = "retrieve the nearest chunks of other documents for each chunk"
CONTENT = (
    "num_neighbours",
    "profile",
    "nprobe",
    "retrieval_margin",
    "target_recall",
    "recall_sample",
    "max_overlap",
    "max_shared_run",
    "max_shared_ngrams",
    "pad_id",
    "seed",
)
PARAMETERS = (*CONTENT, "device", "shard_index", "memory_budget", "search_memory")

STAGE = "retrieve-neighbours"
BLOCK_ROWS = 4096
SEED_MARGIN = 4

EXACT_CELLS = 64
"""Candidates that a row of an exact search counts for: it holds its k best, and a step of it few rows."""

CELL_BYTES = 48
"""Of a candidate while it is scored: id, order, key, distance, and copies on the way."""


@dataclass(frozen=True)
class Query:
    """One shard of queries. ``position``: its place in the index spec, None when it is not in it. ``shard``: all its
    arrays, where they are known."""

    embeddings: str
    embeddings_report: str
    chunk2seq: str
    position: int | None
    neighbours: str
    report: str
    digest: str
    split: Split | None = None
    shard: IndexShard | None = None


@dataclass(frozen=True)
class Job:
    """``index`` and what it was filled from: one for all ``queries``. ``tuning``: report that says how wide to search,
    None when it is measured here. ``former``: neighbours in the base version, if they only need to be brought up to
    date. ``few``: most rows have theirs from the base version. ``following``: queries that come next, which may be
    searched for along with a small one."""

    index: str
    index_report: str
    index_spec: str
    shards: tuple[IndexShard, ...]
    queries: tuple[Query, ...]
    tuning: str | None = None
    pad_id: int | None = None
    former: "Former | None" = None
    few: bool = False
    following: Iterable[Query] = ()


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--query-embeddings", nargs="+", default=[], help="embeddings of the query shards (.npy)")
    parser.add_argument("--query-chunk2seq", nargs="+", default=[], help="chunk2seq of the same shards (.npy)")
    parser.add_argument("--neighbours-output", nargs="+", default=[], help="neighbours to write, one a shard (.npy)")
    parser.add_argument("--index", help="filled index")
    parser.add_argument("--index-spec", help="index spec that the index was filled from")


def run(arguments: Namespace, parameters: Parameters) -> None:
    # Shards of one call that search the same index share it in memory.
    loaded: dict[str, Any] = {}
    if not arguments.plan:
        _run(_job(arguments, parameters), parameters, loaded)
        return
    plan = read_plan(arguments.plan)
    # So do they share what a plan of thousands of shards takes a while to say.
    of_split = functools.cache(partial(_of_split, plan))

    def planned(name: str) -> Job:
        return _planned_job(plan, name, of_split(plan.shard(name).split))

    def work(name: str) -> None:
        job = planned(name)
        later = map(planned, arguments.shard[arguments.shard.index(name) + 1 :])
        following = (of.queries[0] for of in later if of.index == job.index and not of.former)
        _run(replace(job, following=following), parameters, loaded)

    shard_groups.each(STAGE, plan, arguments.shard, work)


def _run(job: Job, parameters: Parameters, loaded: dict[str, Any]) -> None:
    if loaded.get("of") != job.index:
        loaded.clear()
        loaded["of"] = job.index
    chosen = {name: getattr(parameters, name) for name in PARAMETERS}
    for query in job.queries:
        inputs = [query.embeddings, query.chunk2seq, job.index]
        unfinished = Unfinished(paths.unfinished_folder(query.neighbours, query.digest))
        work = partial(_work, job, query, parameters, loaded, unfinished)
        report.run_once(STAGE, query.report, query.digest, chosen, inputs, work, unfinished)


@dataclass(frozen=True)
class _OfSplit:
    """What the queries of a split share: what their index holds, the place of each shard in it, and how the base
    version numbered it (without neighbours yet)."""

    shards: tuple[IndexShard, ...]
    positions: dict[str, int]
    former: "Former | None"


def _of_split(plan: Plan, split: Split) -> _OfSplit:
    from retro_ops.search.incremental import Former

    now = plan.indexed(split)
    positions = {shard.name: at for at, shard in enumerate(now)}
    former = None
    if plan.base:
        numbered = plan.base.indexed(split)
        kept = {shard.name: at for at, shard in enumerate(now) if digests.former_indexed(plan, shard)}
        former = Former(
            neighbours="",
            counts=tuple(shard.chunks for shard in numbered),
            positions=tuple(kept.get(shard.name) for shard in numbered),
            trained=paths.trained_index_uri(plan),
            partials=tuple(paths.partial_index_uri(plan, shard.name) for shard in now if shard.name not in kept),
        )
    return _OfSplit(paths.index_shards(plan, split), positions, former)


def _planned_job(plan: Plan, name: str, of_split: _OfSplit) -> Job:
    shard = plan.shard(name)
    query = Query(
        embeddings=paths.embeddings_uri(plan, name),
        embeddings_report=paths.report_uri(plan, "embed-chunks", name),
        chunk2seq=paths.chunks_files(plan, name)["chunk2seq"],
        position=of_split.positions.get(name),
        neighbours=paths.neighbours_uri(plan, name),
        report=paths.report_uri(plan, STAGE, name),
        digest=digests.neighbours_digest(plan, shard),
        split=shard.split,
        shard=paths.index_shard(plan, name),
    )
    return Job(
        index=paths.index_uri(plan, shard.split),
        index_report=paths.report_uri(plan, "merge-indexes"),
        index_spec=paths.index_spec_uri(plan, shard.split),
        shards=of_split.shards,
        queries=(query,),
        tuning=paths.report_uri(plan, "tune-search"),
        pad_id=plan.identity.pad_id,
        former=_former(plan, shard, of_split.former),
        few=plan.base is not None and any(of_base.neighbours for of_base in plan.base.shards),
    )


def _former(plan: Plan, shard: Shard, of_split: "Former | None") -> "Former | None":
    former = digests.former_shard(plan, shard)
    if not of_split or not former or former.neighbours in (None, digests.neighbours_digest(plan, shard)):
        return None
    return replace(of_split, neighbours=paths.base_neighbours_uri(plan, former))


def _job(arguments: Namespace, parameters: Parameters) -> Job:
    embeddings, chunk2seqs, outputs = (
        arguments.query_embeddings,
        arguments.query_chunk2seq,
        arguments.neighbours_output,
    )
    if not (arguments.index and arguments.index_spec and embeddings):
        raise BadInputError(
            "--query-embeddings, --index and --index-spec are all needed", "name them, or give --plan and --shard"
        )
    if not len(embeddings) == len(chunk2seqs) == len(outputs):
        raise BadInputError(
            f"{len(embeddings)} query embeddings, {len(chunk2seqs)} chunk2seq and {len(outputs)} outputs were named",
            "name one of each for every query shard, in the same order",
        )
    shards = index_spec_from_json(store.read(arguments.index_spec), arguments.index_spec)
    fingerprint = store.at(arguments.index).fingerprint(arguments.index)
    settings = [getattr(parameters, name) for name in CONTENT]
    queries = []
    for embedding, chunk2seq, output in zip(embeddings, chunk2seqs, outputs, strict=True):
        position = _position(embedding, shards, by_content=parameters.profile != "seed")
        content = [store.at(uri).fingerprint(uri) for uri in (embedding, chunk2seq)]
        queries.append(
            Query(
                embeddings=embedding,
                embeddings_report=uris.beside(embedding, paths.REPORT),
                chunk2seq=chunk2seq,
                position=position,
                neighbours=output,
                report=uris.beside(output, paths.REPORT),
                digest=digests.digest(digests.CODE_VERSIONS[STAGE], fingerprint, content, position, settings),
            )
        )
    index_report = uris.beside(arguments.index, paths.REPORT)
    return Job(arguments.index, index_report, arguments.index_spec, shards, tuple(queries))


def _position(embeddings: str, shards: tuple[IndexShard, ...], by_content: bool) -> int | None:
    """Place of the query shard in the index: by path as the original did, else also by content.

    By path alone, a copy of a shard under another name would silently lose the same-document filter.
    """
    for position, shard in enumerate(shards):
        if store.same_object(shard.embeddings, embeddings):
            return position
    if by_content:
        size = store.at(embeddings).size(embeddings)
        content = store.at(embeddings).fingerprint(embeddings)
        for position, shard in enumerate(shards):
            where = store.at(shard.embeddings)
            if where.size(shard.embeddings) == size and where.fingerprint(shard.embeddings) == content:
                return position
    return None


def _work(
    job: Job, query: Query, parameters: Parameters, loaded: dict[str, Any], unfinished: Unfinished
) -> report.Outcome:
    from retro_ops.compute import device

    identity = report.check_same_identity(
        {uri: report.read(uri) for uri in (query.embeddings_report, job.index_report)}
    )
    seed = parameters.profile == "seed"
    where = device.choose(parameters.device, "faiss" if seed else "torch")
    search = (_seed_search if seed else _search)(job, query, parameters, loaded, where)
    counts, outputs, tally = _write(query, parameters.num_neighbours, search, unfinished)
    return report.Outcome(
        counts=counts,
        outputs=outputs,
        identity=identity,
        details={
            "profile": parameters.profile,
            "same_document_filter": search.same_document,
            **search.details,
            **tally,
            **unfinished.details(),
        },
        device=where,
    )


Find = Callable[[int, int], "tuple[NDArray[np.int64], NDArray[np.float32]]"]
"""(start, stop) -> ids int64 [rows, k] and distances float32 [rows, k] of these rows."""


@dataclass(frozen=True)
class Search:
    """``find`` computes ``rows`` rows at a time, ahead of what it hands out. ``tally``: what was counted so far of all
    that it computed, as JSON whose numbers add up. ``same_document``: whether hits of the row's own document are known
    and dropped."""

    find: Find
    rows: int
    details: dict[str, Any]
    tally: Callable[[], dict[str, Any]]
    same_document: bool


def _write(
    query: Query, k: int, search: Search, unfinished: Unfinished
) -> tuple[dict[str, int], list[Written], dict[str, Any]]:
    """Counts, what was written, and the tally of all rows, those found done included."""
    import numpy as np

    from retro_ops.storage.npy import NpyWriter, open_npy

    total, distances_uri = len(open_npy(query.embeddings)), paths.distances_uri(query.neighbours)
    full = 0
    with (
        NpyWriter(query.neighbours, np.int64, (k,), rows=total) as neighbours_out,
        NpyWriter(distances_uri, np.float32, (k,), rows=total) as distances_out,
    ):

        def append(part: Part) -> int:
            neighbours_out.append(part["neighbours"])
            distances_out.append(part["distances"])
            return int((part["neighbours"] >= 0).all(axis=1).sum())

        for part in unfinished.parts():
            full += append(part)
        first, before = unfinished.end, unfinished.state
        progress = Progress(STAGE, total, "chunks", first)
        for start in range(first, total, BLOCK_ROWS):
            end = min(start + BLOCK_ROWS, total)
            ids, distances = search.find(start, end)
            part = {"neighbours": ids, "distances": distances}
            full += append(part)
            progress.advance(len(ids))
            unfinished.add(part, end)
            # Only where `find` is no further than the block, as the tally is of all that it computed.
            if (end - first) % search.rows == 0:
                unfinished.commit_when_due(_sum(before, search.tally()))
        progress.close()
        written = [neighbours_out.close(), distances_out.close()]
    return {"rows": total, "full_rows": full}, written, _sum(before, search.tally())


def _sum(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Two tallies as one: numbers are added, lists joined."""
    if not before:
        return now
    return {
        name: _sum(before[name], value) if isinstance(value, dict) else before[name] + value
        for name, value in now.items()
    }


def _search(job: Job, query: Query, parameters: Parameters, loaded: dict[str, Any], where: "Device") -> Search:
    """Wide search, exact distances, widening; see core/search.py."""
    import numpy as np

    from retro_ops.search import chunk_reader, exact, incremental, open_index, reranking
    from retro_ops.search.filters import REASONS
    from retro_ops.search.tuning import width_from_json

    if "chunks" not in loaded:
        loaded["chunks"] = chunk_reader.IndexedChunks(job.shards)
    chunks: IndexedChunks = loaded["chunks"]
    shard = _query_shard(job, query, parameters, chunks)
    pad_id = _pad_id(job, parameters)

    def index() -> "Index":
        """Loaded when it is first needed: where little changed, nobody asks it."""
        if "index" not in loaded:
            loaded["index"] = open_index.open_index(job.index, chunks, where, parameters, query.split, pad_id)
        return loaded["index"]  # type: ignore[no-any-return]

    tuned = _tuned(job, query, parameters, shard, where, index)
    width = width_from_json(tuned)
    if width and job.few:
        # It may have been chosen for other chunks, and what few rows are searched is cheap: better too wide.
        width = width.widened()
    effort, k = reranking.Effort(), parameters.num_neighbours
    say(f"{STAGE}: {width or 'exact search'}, {where.chosen} ({where.why})")
    # A block that is read anew for every few rows would cost more than the search: many rows at a time.
    budget = parse_bytes(parameters.memory_budget) // 2
    cells = budget // CELL_BYTES
    row_bytes = (width.candidates if width else EXACT_CELLS) * CELL_BYTES + 4 * shard.embeddings.row_bytes
    row_bytes += 2 * shard.tokens.row_bytes if shard.tokens else 0
    rows = max(BLOCK_ROWS, budget // row_bytes // BLOCK_ROWS * BLOCK_ROWS)
    refuse = open_index.refuser(chunks, open_index.limits(parameters, query.split), pad_id)

    def seek(queries: "Queries") -> "Found":
        if width:
            return reranking.find(queries, k, index(), width, cells, effort)
        if where.chosen == "cuda" and not refuse:
            return index().exact(queries, k)
        return reranking.exact_search(queries, k, chunks.blocks, refuse, compare=open_index.comparer(where))

    update, room = None, open_index.room_for(parameters)
    if job.former:
        news = loaded.setdefault("news", {})
        update = incremental.update(job.former, shard, chunks, k, width, cells, where, refuse, seek, room, news)
    ahead: dict[str, Found] = loaded.setdefault("ahead", {})
    state: dict[str, Any] = {"start": 0, "keys": None}
    removed = np.zeros(len(REASONS), np.int64)

    def look(start: int) -> "Found":
        if update:
            return update(start, start + rows)
        if start == 0 and query.report in ahead:
            return ahead.pop(query.report)
        if start or len(shard) >= rows:
            return seek(shard.rows(start, start + rows))
        found, of_others = _together(shard, _others(job, parameters, chunks), rows, seek)
        ahead.update(of_others)
        return found

    def find(start: int, stop: int) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
        if state["keys"] is None or start >= state["start"] + len(state["keys"]):
            found = look(start)
            removed[:] += found.removed.sum(axis=0)
            state["start"], state["keys"] = start, found.keys
        return exact.unpack(state["keys"][start - state["start"] : stop - state["start"]])

    def tally() -> dict[str, Any]:
        return {
            "effort": asdict(effort),
            "removed": dict(zip(REASONS, removed.tolist(), strict=True)),
            **({"updated": asdict(update.done)} if update else {}),
        }

    return Search(find, rows, {"search": tuned}, tally, same_document=shard.documents is not None)


def _others(job: Job, parameters: Parameters, chunks: "IndexedChunks") -> "Iterator[tuple[str, QueryShard]]":
    """What comes next and is not done yet, by its report."""
    for query in job.following:
        if not store.exists(query.report):
            try:
                yield query.report, _query_shard(job, query, parameters, chunks)
            except BadInputError:
                continue  # It says so when its turn comes.


def _together(
    shard: "QueryShard", others: "Iterable[tuple[str, QueryShard]]", rows: int, seek: "Callable[[Queries], Found]"
) -> "tuple[Found, dict[str, Found]]":
    """Neighbours of ``shard``, and of as many ``others`` as make no more than ``rows`` rows with it.

    Whatever is searched for at a time, the embeddings of the candidates are read: for a small shard nearly as many as
    for a large one.
    """
    from retro_ops.search.queries import join
    from retro_ops.search.reranking import Found

    names, shards, total = [], [shard], len(shard)
    for name, other in others:
        total += len(other)
        if total > rows:
            break
        names.append(name)
        shards.append(other)
    found = seek(join([of.rows(0, len(of)) for of in shards]))
    ends = list(accumulate(map(len, shards)))
    parts = [
        Found(found.keys[end - len(of) : end], found.removed[end - len(of) : end])
        for of, end in zip(shards, ends, strict=True)
    ]
    return parts[0], dict(zip(names, parts[1:], strict=True))


def _query_shard(job: Job, query: Query, parameters: Parameters, chunks: "IndexedChunks") -> "QueryShard":
    from retro_ops.search import open_index
    from retro_ops.search.queries import QueryShard, other_shard, query_shard

    embeddings, _ = _open(query)
    _check_dimension(embeddings, chunks.embeddings[0], query, job)
    filtered = bool(open_index.limits(parameters, query.split))
    if query.position is not None:
        return query_shard(chunks, query.position, filtered)
    if query.shard:
        return other_shard(query.shard, chunks, filtered)
    if not filtered:
        return QueryShard(embeddings, None)
    raise BadInputError(
        f"{query.embeddings} is not in {job.index_spec}, so nobody knows the text of its chunks",
        "name its shard in the index spec, or leave out --max-overlap, --max-shared-run and --max-shared-ngrams",
    )


def _pad_id(job: Job, parameters: Parameters) -> int:
    """What chunks are padded with: as the plan says, as asked for, or as the report of the chunks says."""
    if job.pad_id is not None:
        return job.pad_id
    if parameters.pad_id is not None:
        return parameters.pad_id
    found = report.read(uris.beside(job.shards[0].chunks, paths.REPORT))
    return int(found["identity"]["pad_id"]) if found else 0


def _tuned(
    job: Job,
    query: Query,
    parameters: Parameters,
    shard: "QueryShard",
    where: "Device",
    index: "Callable[[], Index]",
) -> dict[str, Any]:
    """How wide to search, as `tune-search` measured it; measured here if it did not, or by a search that finds more."""
    from retro_ops.search.queries import sample
    from retro_ops.search.tuning import tune

    if job.tuning:
        found = report.read(job.tuning)
        if found is None:
            raise BadInputError(f"{job.tuning} does not exist", "run `retro-ops tune-search` with the same plan first")
        tuned: dict[str, Any] = found["details"][query.split]
        if where.chosen == "cuda" or tuned.get("searched", "codes") == "codes" or not tuned["width"]:
            return tuned
        say(f"{STAGE}: how wide to search was measured on a GPU, where whole vectors are searched; measuring it here")
    queries = sample([shard], parameters.recall_sample, parameters.seed)
    return tune(queries, index(), parameters).as_json()


def _seed_search(job: Job, query: Query, parameters: Parameters, loaded: dict[str, Any], where: "Device") -> Search:
    """The original's search: one look, the index's own order and distances, short rows stay short."""
    import numpy as np

    from retro_ops.index.faiss_files import load_index
    from retro_ops.index.ivf_file import too_large
    from retro_ops.search import faiss_search
    from retro_ops.search.ivf_parts import in_parts
    from retro_ops.search.open_index import room_for
    from retro_ops.search.seed_profile import seed_neighbours
    from retro_ops.storage.npy import open_npy

    embeddings, chunk2seq = _open(query)
    if "counts" not in loaded:
        loaded["counts"] = read_ahead.side_by_side(lambda shard: len(open_npy(shard.embeddings)), job.shards)
    counts: list[int] = loaded["counts"]
    if "search" not in loaded:
        room = room_for(parameters)
        if where.chosen == "cpu" and (parts := too_large([job.index], room)):
            loaded |= {"total": parts[0].total, "search": in_parts(parts, room.bytes)}
        else:
            index = load_index(job.index)
            loaded["total"] = int(index.ntotal)
            loaded["search"] = faiss_search.searcher(index, where, parameters.shard_index)
    if loaded["total"] != sum(counts):
        raise BadInputError(
            f"{job.index} holds {loaded['total']:,} vectors, its index spec names {sum(counts):,}",
            "give the index spec that the index was filled from",
        )
    _check_dimension(embeddings, open_npy(job.shards[0].embeddings), query, job)
    offset = None if query.position is None else sum(counts[: query.position])
    margin = SEED_MARGIN if parameters.retrieval_margin is None else parameters.retrieval_margin
    nprobe, k = parameters.nprobe or 1, parameters.num_neighbours
    say(f"{STAGE}: seed profile, nprobe {nprobe}, retrieval_margin {margin}, {where.chosen} ({where.why})")

    def find(start: int, stop: int) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
        first, end = _own_documents(chunk2seq, start, stop, offset)
        queries = np.ascontiguousarray(embeddings.rows(start, stop), np.float32)
        found = seed_neighbours(loaded["search"], queries, first, end, k, margin, nprobe)
        return found.ids, found.distances

    details = {"nprobe": nprobe, "retrieval_margin": margin}
    return Search(find, BLOCK_ROWS, details, dict, same_document=offset is not None)


def _open(query: Query) -> "tuple[NpyReader, NpyReader]":
    from retro_ops.storage.npy import open_npy

    embeddings = open_npy(query.embeddings, ndim=2, kind="f")
    chunk2seq = open_npy(query.chunk2seq, ndim=1, kind="iu")
    if len(embeddings) != len(chunk2seq):
        raise BadInputError(
            f"{query.embeddings} has {len(embeddings):,} rows, {query.chunk2seq} has {len(chunk2seq):,}",
            "they must come from the same chunks",
        )
    return embeddings, chunk2seq


def _check_dimension(embeddings: "NpyReader", indexed: "NpyReader", query: Query, job: Job) -> None:
    if embeddings.shape[1] != indexed.shape[1]:
        raise BadInputError(
            f"{query.embeddings} has {embeddings.shape[1]} dimensions, {job.index} has {indexed.shape[1]}",
            "embed the queries with the model of the index",
        )


def _own_documents(
    chunk2seq: "NpyReader", start: int, stop: int, offset: int | None
) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Global ids ``first:end`` of the document of each row ``start:stop``; empty ranges when not indexed.

    Reads on either side until the documents at the edges are whole.
    """
    import numpy as np

    from retro_ops.search.seed_profile import document_ranges

    if offset is None:
        nothing = np.zeros(stop - start, np.int64)
        return nothing, nothing
    low, rows = start, chunk2seq.rows(start, stop)
    while low > 0 and rows[0] == rows[start - low]:
        before = chunk2seq.rows(max(0, low - BLOCK_ROWS), low)
        low, rows = low - len(before), np.concatenate((before, rows))
    high = stop
    while high < len(chunk2seq) and rows[-1] == rows[stop - 1 - low]:
        after = chunk2seq.rows(high, high + BLOCK_ROWS)
        high, rows = high + len(after), np.concatenate((rows, after))
    first, end = document_ranges(rows)
    own = slice(start - low, stop - low)
    return first[own] + (low + offset), end[own] + (low + offset)
