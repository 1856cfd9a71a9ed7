"""Embeddings + filled index -> neighbours.npy (global chunk ids) and distances.npy."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from retro_ops import uris
from retro_ops.compute import device
from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report, shard_groups
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.execution.plan_files import read_plan
from retro_ops.execution.shard_groups import Shared
from retro_ops.plan import digests, grid, paths, views
from retro_ops.plan.parameters import PARAMETERS, Parameters, values_for
from retro_ops.plan.specs import IndexShard, index_spec_from_json
from retro_ops.search.jobs import Job, PlannedJobs
from retro_ops.search.neighbours_writer import Search, write_neighbours
from retro_ops.storage import store

if TYPE_CHECKING:
    from retro_ops.search.open_index import SearchedIndex
    from retro_ops.search.seed_profile import SeedIndex


STAGE = "retrieve-neighbours"
BLOCK_ROWS = 4096
"""Rows that are written, and counted as progress, at a time."""


@dataclass
class _Indexes:
    """The index that the query shards of a call share: one of the two, by the profile."""

    default: "Shared[SearchedIndex]" = field(default_factory=Shared)
    seed: "Shared[SeedIndex]" = field(default_factory=Shared)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--query-embeddings", nargs="+", default=[], help="embeddings of the query shards (.npy)")
    parser.add_argument("--query-chunk2seq", nargs="+", default=[], help="chunk2seq of the same shards (.npy)")
    parser.add_argument("--neighbours-output", nargs="+", default=[], help="neighbours to write, one per shard (.npy)")
    parser.add_argument("--index", help="filled index")
    parser.add_argument(
        "--grid",
        type=grid.parse,
        metavar="PxR",
        help="with --plan: merge the cells that `search-parts` found, for P parts of the vectors and R ranges of the "
        "queries",
    )
    parser.add_argument("--index-spec", help="index spec that the index was filled from")


def run(arguments: Namespace, parameters: Parameters) -> None:
    indexes = _Indexes()
    if not arguments.plan:
        for job in _jobs(arguments, parameters):
            _run(job, parameters, indexes)
        return
    plan = read_plan(arguments.plan)
    jobs = PlannedJobs(plan, arguments.plan, arguments.grid)

    def work(name: str) -> None:
        job = jobs.job(name)
        later = map(jobs.job, arguments.shard[arguments.shard.index(name) + 1 :])
        following = (other for other in later if other.index == job.index and not other.previous)
        _run(replace(job, following=following), parameters, indexes)

    shard_groups.each(STAGE, plan, arguments.shard, work)


def _run(job: Job, parameters: Parameters, indexes: _Indexes) -> None:
    chosen = values_for(STAGE, parameters)
    inputs = [job.embeddings, job.chunk2seq, job.index]
    unfinished = Checkpoints(paths.unfinished_folder(job.neighbours, job.digest))
    work = partial(_work, job, parameters, indexes, unfinished)
    report.run_once(STAGE, job.report, job.digest, chosen, inputs, work, unfinished)


def _jobs(arguments: Namespace, parameters: Parameters) -> list[Job]:
    """By hand: one for each query shard."""
    embeddings, chunk2seqs, outputs = (
        arguments.query_embeddings,
        arguments.query_chunk2seq,
        arguments.neighbours_output,
    )
    require_flags(arguments, "query_embeddings", "index", "index_spec", remedy="name them, or give --plan and --shard")
    if not len(embeddings) == len(chunk2seqs) == len(outputs):
        raise BadInputError(
            f"{len(embeddings)} query embeddings, {len(chunk2seqs)} chunk2seq and {len(outputs)} outputs were named",
            "name one of each for every query shard, in the same order",
        )
    indexed = index_spec_from_json(store.read(arguments.index_spec), arguments.index_spec)
    fingerprint = store.at(arguments.index).fingerprint(arguments.index)
    deciding = {name: value for name, value in values_for(STAGE, parameters).items() if PARAMETERS[name].decides}
    # In the order of earlier code, so that outputs that were made by hand keep their digest.
    settings = [value for name, value in sorted(deciding.items(), key=lambda entry: entry[0] in ("pad_id", "seed"))]
    jobs = []
    for embedding, chunk2seq, output in zip(embeddings, chunk2seqs, outputs, strict=True):
        position = _position(embedding, indexed, by_content=parameters.profile != "seed")
        content = [store.at(uri).fingerprint(uri) for uri in (embedding, chunk2seq)]
        jobs.append(
            Job(
                embeddings=embedding,
                embeddings_report=uris.beside(embedding, paths.REPORT),
                chunk2seq=chunk2seq,
                position=position,
                index=arguments.index,
                index_report=uris.beside(arguments.index, paths.REPORT),
                index_spec=arguments.index_spec,
                indexed=indexed,
                neighbours=output,
                report=uris.beside(output, paths.REPORT),
                digest=digests.digest(digests.CODE_VERSIONS[STAGE], fingerprint, content, position, settings),
            )
        )
    return jobs


def _position(embeddings: str, indexed: tuple[IndexShard, ...], by_content: bool) -> int | None:
    """Place of the query shard in the index: by path as in the original scripts, else also by content.

    By path alone, a copy of a shard under another name would silently lose the same-document filter.
    """
    for position, shard in enumerate(indexed):
        if store.same_object(shard.embeddings, embeddings):
            return position
    if by_content:
        size = store.at(embeddings).size(embeddings)
        content = store.at(embeddings).fingerprint(embeddings)
        for position, shard in enumerate(indexed):
            where = store.at(shard.embeddings)
            if where.size(shard.embeddings) == size and where.fingerprint(shard.embeddings) == content:
                return position
    return None


def _work(job: Job, parameters: Parameters, indexes: _Indexes, unfinished: Checkpoints) -> report.Outcome:

    identity = report.check_same_identity({uri: report.read(uri) for uri in (job.embeddings_report, job.index_report)})
    where = device.choose(parameters.device, "faiss" if parameters.profile == "seed" else "torch")
    search = _open_search(job, parameters, indexes, where)
    counts, outputs, tally = write_neighbours(job, parameters, search, unfinished, BLOCK_ROWS)
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


def _open_search(job: Job, parameters: Parameters, indexes: _Indexes, where: Device) -> Search:
    if parameters.profile == "seed":
        from retro_ops.search.seed_profile import SeedIndex, SeedRetriever

        seed_index = indexes.seed.get(job.index, lambda: SeedIndex(job, parameters, where))
        return SeedRetriever(job, seed_index, BLOCK_ROWS)
    from retro_ops.search.retrieval import Retriever, searched_index

    index = indexes.default.get(job.index, lambda: searched_index(job, views.searched(parameters), where))
    return Retriever(job, index, BLOCK_ROWS, parameters)
