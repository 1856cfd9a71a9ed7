"""Embeddings + filled index -> neighbours.npy (global chunk ids) and distances.npy."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from retro_ops import layout, report, store
from retro_ops.blocks import Part, Unfinished
from retro_ops.errors import BadInputError
from retro_ops.plans import read_plan
from retro_ops.progress import Progress, say
from retro_ops.specs import IndexShard, Parameters, Plan, Shard, Split, index_spec_from_json, parse_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retro_ops.arrays import NpyReader
    from retro_ops.core.search import Found, Index, Queries
    from retro_ops.device import Device
    from retro_ops.searching import IndexedChunks, QueryShard
    from retro_ops.updating import Former

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
    """One shard of queries. ``position``: its place in the index spec, None when it is not in it."""

    embeddings: str
    embeddings_report: str
    chunk2seq: str
    position: int | None
    neighbours: str
    report: str
    digest: str
    split: Split | None = None


@dataclass(frozen=True)
class Job:
    """``tuning``: report that says how wide to search, None when it is measured here. ``former``: neighbours in the
    base version, if they only need to be brought up to date. ``few``: most rows have theirs from the base version."""

    index: str
    index_report: str
    index_spec: str
    shards: tuple[IndexShard, ...]
    queries: tuple[Query, ...]
    tuning: str | None = None
    pad_id: int | None = None
    former: "Former | None" = None
    few: bool = False


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--query-embeddings", nargs="+", default=[], help="embeddings of the query shards (.npy)")
    parser.add_argument("--query-chunk2seq", nargs="+", default=[], help="chunk2seq of the same shards (.npy)")
    parser.add_argument("--neighbours-output", nargs="+", default=[], help="neighbours to write, one a shard (.npy)")
    parser.add_argument("--index", help="filled index")
    parser.add_argument("--index-spec", help="index spec that the index was filled from")


def run(arguments: Namespace, parameters: Parameters) -> None:
    job = _planned_job(arguments.plan, arguments.shard) if arguments.plan else _job(arguments, parameters)
    chosen = {name: getattr(parameters, name) for name in PARAMETERS}
    # Several shards of one call share the index in memory.
    loaded: dict[str, Any] = {}
    for query in job.queries:
        inputs = [query.embeddings, query.chunk2seq, job.index]
        unfinished = Unfinished(layout.unfinished_folder(query.neighbours, query.digest))
        work = partial(_work, job, query, parameters, loaded, unfinished)
        report.run_once(STAGE, query.report, query.digest, chosen, inputs, work, unfinished)


def _planned_job(plan_uri: str, name: str) -> Job:
    plan = read_plan(plan_uri)
    shard = plan.shard(name)
    return Job(
        index=layout.index_uri(plan, shard.split),
        index_report=layout.report_uri(plan, "merge-indexes"),
        index_spec=layout.index_spec_uri(plan, shard.split),
        shards=layout.index_shards(plan, shard.split),
        queries=(
            Query(
                embeddings=layout.embeddings_uri(plan, name),
                embeddings_report=layout.report_uri(plan, "embed-chunks", name),
                chunk2seq=layout.chunks_files(plan, name)["chunk2seq"],
                position=plan.indexed(shard.split).index(shard),
                neighbours=layout.neighbours_uri(plan, name),
                report=layout.report_uri(plan, STAGE, name),
                digest=layout.neighbours_digest(plan, shard),
                split=shard.split,
            ),
        ),
        tuning=layout.report_uri(plan, "tune-search"),
        pad_id=plan.identity.pad_id,
        former=_former(plan, shard),
        few=plan.base is not None and any(of_base.neighbours for of_base in plan.base.shards),
    )


def _former(plan: Plan, shard: Shard) -> "Former | None":
    from retro_ops.updating import Former

    former = layout.former_shard(plan, shard)
    if not plan.base or not former or former.neighbours in (None, layout.neighbours_digest(plan, shard)):
        return None
    now = plan.indexed(shard.split)
    places = {s.name: at for at, s in enumerate(now) if layout.former_shard(plan, s)}
    numbered = plan.base.indexed(shard.split)
    return Former(
        neighbours=layout.former_neighbours_uri(plan, former),
        counts=tuple(s.chunks for s in numbered),
        positions=tuple(places.get(s.name) for s in numbered),
        trained=layout.trained_index_uri(plan),
        partials=tuple(layout.partial_index_uri(plan, s.name) for s in now if s.name not in places),
    )


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
                embeddings_report=layout.beside(embedding, layout.REPORT),
                chunk2seq=chunk2seq,
                position=position,
                neighbours=output,
                report=layout.beside(output, layout.REPORT),
                digest=layout.digest(layout.CODE_VERSIONS[STAGE], fingerprint, content, position, settings),
            )
        )
    index_report = layout.beside(arguments.index, layout.REPORT)
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
    from retro_ops import device

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
            "same_document_filter": query.position is not None,
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
    that it computed, as JSON whose numbers add up."""

    find: Find
    rows: int
    details: dict[str, Any]
    tally: Callable[[], dict[str, Any]]


def _write(
    query: Query, k: int, search: Search, unfinished: Unfinished
) -> tuple[dict[str, int], list[store.Written], dict[str, Any]]:
    """Counts, what was written, and the tally of all rows, those found done included."""
    import numpy as np

    from retro_ops.arrays import NpyWriter, open_npy

    total, distances_uri = len(open_npy(query.embeddings)), layout.distances_uri(query.neighbours)
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

    from retro_ops import searching, updating
    from retro_ops.core import exact, search
    from retro_ops.core.filters import REASONS

    if "chunks" not in loaded:
        loaded["chunks"] = searching.IndexedChunks(job.shards)
    chunks: IndexedChunks = loaded["chunks"]
    shard = _query_shard(job, query, parameters, chunks)
    pad_id = _pad_id(job, parameters)

    def index() -> "Index":
        """Loaded when it is first needed: where little changed, nobody asks it."""
        if "index" not in loaded:
            loaded["index"] = searching.open_index(job.index, chunks, where, parameters, query.split, pad_id)
        return loaded["index"]  # type: ignore[no-any-return]

    tuned = _tuned(job, query, parameters, shard, where, index)
    width = searching.width_from_json(tuned)
    if width and job.few:
        # It may have been chosen for other chunks, and what few rows are searched is cheap: better too wide.
        width = width.widened()
    effort, k = search.Effort(), parameters.num_neighbours
    say(f"{STAGE}: {width or 'exact search'}, {where.chosen} ({where.why})")
    # A block that is read anew for every few rows would cost more than the search: many rows at a time.
    budget = parse_bytes(parameters.memory_budget) // 2
    cells = budget // CELL_BYTES
    row_bytes = (width.candidates if width else EXACT_CELLS) * CELL_BYTES + 4 * shard.embeddings.row_bytes
    row_bytes += 2 * shard.tokens.row_bytes if shard.tokens else 0
    rows = max(BLOCK_ROWS, budget // row_bytes // BLOCK_ROWS * BLOCK_ROWS)
    refuse = searching.refuser(chunks, searching.limits(parameters, query.split), pad_id)

    def seek(queries: "Queries") -> "Found":
        if width:
            return search.find(queries, k, index(), width, cells, effort)
        if where.chosen == "cuda":
            return index().exact(queries, k)
        return search.exact_search(queries, k, chunks.blocks, refuse)

    update, room = None, searching.room_for(parameters)
    if job.former:
        update = updating.update(job.former, shard, chunks, k, width, cells, where, refuse, seek, room)
    state: dict[str, Any] = {"start": 0, "keys": None}
    removed = np.zeros(len(REASONS), np.int64)

    def find(start: int, stop: int) -> "tuple[NDArray[np.int64], NDArray[np.float32]]":
        if state["keys"] is None or start >= state["start"] + len(state["keys"]):
            found = update(start, start + rows) if update else seek(shard.rows(start, start + rows))
            removed[:] += found.removed.sum(axis=0)
            state["start"], state["keys"] = start, found.keys
        return exact.unpack(state["keys"][start - state["start"] : stop - state["start"]])

    def tally() -> dict[str, Any]:
        return {
            "effort": asdict(effort),
            "removed": dict(zip(REASONS, removed.tolist(), strict=True)),
            **({"updated": asdict(update.done)} if update else {}),
        }

    return Search(find, rows, {"search": tuned}, tally)


def _query_shard(job: Job, query: Query, parameters: Parameters, chunks: "IndexedChunks") -> "QueryShard":
    from retro_ops import searching

    embeddings, _ = _open(query)
    _check_dimension(embeddings, chunks.embeddings[0], query, job)
    filtered = bool(searching.limits(parameters, query.split))
    if query.position is not None:
        return searching.query_shard(chunks, query.position, filtered)
    if not filtered:
        return searching.QueryShard(embeddings, chunks, None)
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
    found = report.read(layout.beside(job.shards[0].chunks, layout.REPORT))
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
    from retro_ops import searching

    if job.tuning:
        found = report.read(job.tuning)
        if found is None:
            raise BadInputError(f"{job.tuning} does not exist", "run `retro-ops tune-search` with the same plan first")
        tuned: dict[str, Any] = found["details"][query.split]
        if where.chosen == "cuda" or tuned.get("searched", "codes") == "codes" or not tuned["width"]:
            return tuned
        say(f"{STAGE}: how wide to search was measured on a GPU, where whole vectors are searched; measuring it here")
    queries = searching.sample([shard], parameters.recall_sample, parameters.seed)
    return searching.tune(queries, index(), parameters).as_json()


def _seed_search(job: Job, query: Query, parameters: Parameters, loaded: dict[str, Any], where: "Device") -> Search:
    """The original's search: one look, the index's own order and distances, short rows stay short."""
    import numpy as np

    from retro_ops.arrays import open_npy
    from retro_ops.core import faiss_index
    from retro_ops.core.neighbours import seed_neighbours
    from retro_ops.index_lists import in_parts, too_large
    from retro_ops.indexes import load_index
    from retro_ops.searching import room_for

    embeddings, chunk2seq = _open(query)
    counts = [len(open_npy(shard.embeddings)) for shard in job.shards]
    if not loaded:
        room = room_for(parameters)
        if where.chosen == "cpu" and (parts := too_large([job.index], room)):
            loaded |= {"total": parts[0].total, "search": in_parts(parts, room.bytes)}
        else:
            index = load_index(job.index)
            loaded["total"] = int(index.ntotal)
            loaded["search"] = faiss_index.searcher(index, where, parameters.shard_index)
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

    return Search(find, BLOCK_ROWS, {"nprobe": nprobe, "retrieval_margin": margin}, dict)


def _open(query: Query) -> "tuple[NpyReader, NpyReader]":
    from retro_ops.arrays import open_npy

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

    from retro_ops.core.neighbours import document_ranges

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
