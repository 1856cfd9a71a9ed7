"""Embeddings + filled index -> neighbours.npy (global chunk ids) and distances.npy."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from retro_ops import layout, report, store
from retro_ops.errors import BadInputError
from retro_ops.plans import read_plan
from retro_ops.progress import Progress, say
from retro_ops.specs import IndexShard, Parameters, index_spec_from_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retro_ops.arrays import NpyReader
    from retro_ops.core.neighbours import Found

HELP = "retrieve the nearest chunks of other documents for each chunk"
PARAMETERS = (
    "num_neighbours",
    "profile",
    "nprobe",
    "retrieval_margin",
    "device",
    "shard_index",
    "memory_budget",
)

STAGE = "retrieve-neighbours"
BLOCK_ROWS = 4096
SEED_MARGIN = 4
DEFAULT_MARGIN = 60


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


@dataclass(frozen=True)
class Job:
    index: str
    index_report: str
    shards: tuple[IndexShard, ...]
    queries: tuple[Query, ...]


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
        work = partial(_work, job, query, parameters, loaded)
        report.run_once(STAGE, query.report, query.digest, chosen, inputs, work)


def _planned_job(plan_uri: str, name: str) -> Job:
    plan = read_plan(plan_uri)
    shard = plan.shard(name)
    return Job(
        index=layout.index_uri(plan, shard.split),
        index_report=layout.report_uri(plan, "merge-indexes"),
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
            ),
        ),
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
    names = ("num_neighbours", "profile", "nprobe", "retrieval_margin")
    settings = [getattr(parameters, name) for name in names]
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
    return Job(arguments.index, layout.beside(arguments.index, layout.REPORT), shards, tuple(queries))


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


def _work(job: Job, query: Query, parameters: Parameters, loaded: dict[str, Any]) -> report.Outcome:
    import numpy as np

    from retro_ops import device
    from retro_ops.arrays import NpyWriter, open_npy
    from retro_ops.core import faiss_index
    from retro_ops.indexes import load_index

    embeddings = open_npy(query.embeddings, ndim=2, kind="f")
    chunk2seq = open_npy(query.chunk2seq, ndim=1, kind="iu")
    counts = [len(open_npy(shard.embeddings)) for shard in job.shards]
    identity = report.check_same_identity(
        {uri: report.read(uri) for uri in (query.embeddings_report, job.index_report)}
    )
    where = device.choose(parameters.device, "faiss")
    if not loaded:
        index = load_index(job.index)
        loaded["lists"], loaded["total"], loaded["d"] = faiss_index.list_count(index), int(index.ntotal), index.d
        loaded["search"] = faiss_index.searcher(index, where, parameters.shard_index)
    _check(job, query, embeddings, chunk2seq, counts, loaded)
    offset = None if query.position is None else sum(counts[: query.position])
    find, width = _finder(parameters, loaded)
    k, distances_uri = parameters.num_neighbours, layout.distances_uri(query.neighbours)
    how = ", ".join(f"{name} {value}" for name, value in width.items())
    say(f"{STAGE}: {parameters.profile} profile, {how}, {where.chosen} ({where.why})")
    progress = Progress(STAGE, len(embeddings), "chunks")
    full = 0
    with (
        NpyWriter(query.neighbours, np.int64, (k,), rows=len(embeddings)) as neighbours_out,
        NpyWriter(distances_uri, np.float32, (k,), rows=len(embeddings)) as distances_out,
    ):
        for start, block in embeddings.blocks(BLOCK_ROWS):
            first, end = _own_documents(chunk2seq, start, start + len(block), offset)
            found = find(np.ascontiguousarray(block, np.float32), first, end)
            neighbours_out.append(found.ids)
            distances_out.append(found.distances)
            full += len(block) - len(found.short_rows)
            progress.advance(len(block))
        progress.close()
        outputs = [neighbours_out.close(), distances_out.close()]
    return report.Outcome(
        counts={"rows": len(embeddings), "full_rows": full},
        outputs=outputs,
        identity=identity,
        details={"profile": parameters.profile, **width, "same_document_filter": offset is not None},
        device=where,
    )


def _check(
    job: Job, query: Query, embeddings: "NpyReader", chunk2seq: "NpyReader", counts: list[int], loaded: dict[str, Any]
) -> None:
    if len(embeddings) != len(chunk2seq):
        raise BadInputError(
            f"{query.embeddings} has {len(embeddings):,} rows, {query.chunk2seq} has {len(chunk2seq):,}",
            "they must come from the same chunks",
        )
    if embeddings.shape[1] != loaded["d"]:
        raise BadInputError(
            f"{query.embeddings} has {embeddings.shape[1]} dimensions, {job.index} has {loaded['d']}",
            "embed the queries with the model of the index",
        )
    if sum(counts) != loaded["total"]:
        raise BadInputError(
            f"{job.index} holds {loaded['total']:,} vectors, its index spec names {sum(counts):,}",
            "give the index spec that the index was filled from",
        )


def _finder(parameters: Parameters, loaded: dict[str, Any]) -> tuple[Callable[..., "Found"], dict[str, int]]:
    from retro_ops.core import neighbours

    search, total, k = loaded["search"], loaded["total"], parameters.num_neighbours
    given = parameters.retrieval_margin
    if parameters.profile == "seed":
        margin = SEED_MARGIN if given is None else given
        nprobe = parameters.nprobe or 1
        return (
            lambda queries, first, end: neighbours.seed_neighbours(search, queries, first, end, k, margin, nprobe),
            {"nprobe": nprobe, "retrieval_margin": margin},
        )
    width = neighbours.SearchWidth(
        margin=DEFAULT_MARGIN if given is None else given,
        nprobe=min(loaded["lists"], parameters.nprobe or neighbours.default_nprobe(loaded["lists"])),
        nlist=loaded["lists"],
    )
    return (
        lambda queries, first, end: neighbours.find_neighbours(search, queries, first, end, k, width, total),
        {"nprobe": width.nprobe, "retrieval_margin": width.margin},
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
