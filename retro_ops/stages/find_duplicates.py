"""Finds duplicate and contaminated documents from what `sign-documents` wrote; writes a plan that leaves them out."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.duplicates.summary import examples, figures
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import budgets, report
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Source
from retro_ops.progress import Progress, say
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyWriter, open_npy

if TYPE_CHECKING:
    from retro_ops.duplicates.signatures import SignedShards


STAGE = "find-duplicates"
DUPLICATES_FORMAT = 1
LEFT_OUT = {"drop": "left out", "report": "only counted"}


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    if not plan.parameters.compares_documents:
        raise BadInputError(
            f"{arguments.plan} was made with --duplicates keep and without --benchmarks",
            "plan again with --duplicates report or drop, or with --benchmarks",
        )
    _work(plan, arguments.plan, budgets.budget(parameters))


def _work(plan: Plan, plan_uri: str, budget: int) -> None:
    from retro_ops.duplicates.signatures import SignedShards

    reports = read_ahead.side_by_side(partial(_report, plan), [shard.name for shard in plan.shards], read_ahead.READERS)
    signed = SignedShards([paths.signature_files(plan, shard.name) for shard in plan.shards])
    uri, p = paths.next_plan_uri(plan_uri, "deduplicated"), plan.parameters
    repeated = contaminated = np.zeros(0, np.int64)
    if plan.benchmark_files:
        found, facts = _contaminated(plan, signed, reports)
        _write_facts(paths.contamination_uri(plan_uri), facts)
        contaminated = found if p.contaminated == "drop" else contaminated
        say(
            f"{STAGE}: {facts['contaminated']:,} of {facts['documents']:,} training documents hold benchmark texts; "
            f"they are {LEFT_OUT[p.contaminated]}: {uri}",
            event="contaminated",
        )
    if p.duplicates != "keep":
        found, facts = _duplicates(plan, signed, reports, contaminated, budget)
        _write_facts(paths.duplicates_uri(plan_uri), facts)
        repeated = np.setdiff1d(found, contaminated) if p.duplicates == "drop" else repeated
        kinds = f"{facts['exact']:,} exact, {facts['across_splits']:,} across splits"
        say(
            f"{STAGE}: {facts['duplicates']:,} of {facts['documents']:,} documents are duplicates ({kinds}); "
            f"they are {LEFT_OUT[p.duplicates]}: {uri}",
            event="duplicates",
        )
    listed = zip(plan.shards, _listed(plan, signed, repeated), _listed(plan, signed, contaminated), strict=True)
    shards = tuple(replace(shard, without=without, contaminated=holding) for shard, without, holding in listed)
    write_plan(replace(plan, shards=shards, deduplicated=True), uri)


def _write_facts(uri: str, facts: dict[str, Any]) -> None:
    store.write(uri, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def _contaminated(
    plan: Plan, signed: "SignedShards", reports: list[dict[str, Any]]
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The documents (ascending) that hold benchmark texts, and their counts and examples."""
    from retro_ops.duplicates import contamination

    first_of, texts = contamination.summed(
        _whole(paths.overlaps_uri(plan, shard.name)) if plan.benchmarks_of(shard) else np.zeros((0, 3), np.int64)
        for shard in plan.shards
    )
    documents = [signed.documents_of(at, first[:, 0]) for at, first in enumerate(first_of) if len(first)]
    facts = contamination.figures(plan, reports, first_of, texts)
    return np.concatenate([np.zeros(0, np.int64), *documents]), facts


def _whole(uri: str) -> NDArray[np.int64]:
    reader = open_npy(uri, ndim=2, kind="i")
    return reader.rows(0, len(reader))


def _duplicates(
    plan: Plan, signed: "SignedShards", reports: list[dict[str, Any]], contaminated: NDArray[np.int64], budget: int
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """The documents (ascending) that repeat others, and their counts and examples."""
    from retro_ops.duplicates import document_pairs, lsh, minhash

    threshold = plan.parameters.duplicate_threshold
    bands = minhash.PERMUTATIONS // document_pairs.rows_per_band(threshold)
    progress = Progress(STAGE, bands, "bands")
    alike = lsh.find(signed, threshold, budget, progress.advance)
    progress.close()
    documents, clusters = document_pairs.clusters(document_pairs.joined([alike.exact, alike.near]))
    # Prefer validation documents, whose copies in the training split are dropped, and then those that are not dropped.
    is_train = np.array([shard.split == "train" for shard in plan.shards], np.int64)
    rank = is_train[signed.shard_of(documents)] + np.isin(documents, contaminated)
    canonical = document_pairs.canonical_of(documents, clusters, rank)
    repeated = np.flatnonzero(documents != canonical)
    return documents[repeated], {
        "format": DUPLICATES_FORMAT,
        "duplicates_are": plan.parameters.duplicates,
        "threshold": threshold,
        "ngram_words": minhash.NGRAM_WORDS,
        "permutations": minhash.PERMUTATIONS,
        "bands": bands,
        "compared_pairs": alike.compared,
        **figures(plan, signed, documents[repeated], canonical[repeated]),
        "clusters": int(clusters.max(initial=-1)) + 1,
        "largest_cluster": int(np.bincount(clusters).max(initial=0)),
        "unsigned_shards": [
            s.name for s, done in zip(plan.shards, reports, strict=True) if "damaged" in done["details"]
        ],
        "examples": examples(plan, signed, reports, documents[repeated], canonical[repeated], budget),
    }


def _report(plan: Plan, name: str) -> dict[str, Any]:
    """The report of the signatures of a shard. Raises BadInputError if their files were changed."""
    done = report.require(paths.report_uri(plan, "sign-documents", name), f"sign-documents of shard {name!r}")
    if changed := report.changed_output(done):
        raise BadInputError(
            f"{changed} was modified after its stage wrote it", "delete its folder, then run sign-documents again"
        )
    return done


def _listed(plan: Plan, signed: "SignedShards", dropped: NDArray[np.int64]) -> list[Source | None]:
    """For each shard the file that lists its records among ``dropped`` (ascending documents); None if it has none."""

    records, bounds = signed.records_of(dropped), np.searchsorted(dropped, signed.offsets)
    return [
        _written(plan, shard.name, records[first:end]) if first < end else None
        for shard, first, end in zip(plan.shards, bounds.tolist(), bounds[1:].tolist(), strict=False)
    ]


def _written(plan: Plan, shard: str, records: NDArray[np.int64]) -> Source:
    """Write the numbers of the records that a shard leaves out, to a file named by its content."""

    content = digests.digest(np.ascontiguousarray(records, "<i8").tobytes().hex())
    with NpyWriter(paths.without_uri(plan, shard, content), np.int64, rows=len(records)) as writer:
        writer.append(records)
        written = writer.close()
    return Source(written.uri, written.bytes, f"sha256:{written.sha256}")
