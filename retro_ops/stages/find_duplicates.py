"""Finds duplicate documents from the signatures of all shards; writes a report and a plan that leaves them out."""

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
from retro_ops.storage.npy import NpyWriter

if TYPE_CHECKING:
    from retro_ops.duplicates.signatures import SignedShards


STAGE = "find-duplicates"
DUPLICATES_FORMAT = 1


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    if plan.parameters.duplicates == "keep":
        raise BadInputError(
            f"{arguments.plan} was made with --duplicates keep", "plan again with --duplicates report or drop"
        )
    facts, kept = _work(plan, budgets.budget(parameters))
    store.write(paths.duplicates_uri(arguments.plan), (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    uri = paths.next_plan_uri(arguments.plan, "deduplicated")
    write_plan(replace(kept, deduplicated=True), uri)
    action = "left out" if plan.parameters.duplicates == "drop" else "only counted"
    kinds = f"{facts['exact']:,} exact, {facts['across_splits']:,} across splits"
    say(
        f"{STAGE}: {facts['duplicates']:,} of {facts['documents']:,} documents are duplicates ({kinds}); "
        f"they are {action}: {uri}",
        event="duplicates",
    )


def _work(plan: Plan, budget: int) -> tuple[dict[str, Any], Plan]:

    from retro_ops.duplicates import document_pairs, lsh, minhash
    from retro_ops.duplicates.signatures import SignedShards

    reports = read_ahead.side_by_side(partial(_report, plan), [shard.name for shard in plan.shards], read_ahead.READERS)
    signed = SignedShards([paths.signature_files(plan, shard.name) for shard in plan.shards])
    threshold = plan.parameters.duplicate_threshold
    bands = minhash.PERMUTATIONS // document_pairs.rows_per_band(threshold)
    progress = Progress(STAGE, bands, "bands")
    alike = lsh.find(signed, threshold, budget, progress.advance)
    progress.close()
    documents, clusters = document_pairs.clusters(document_pairs.joined([alike.exact, alike.near]))
    # Prefer validation documents: their copies in the training split are dropped.
    is_train = np.array([shard.split == "train" for shard in plan.shards], np.int64)
    canonical = document_pairs.canonical_of(documents, clusters, is_train[signed.shard_of(documents)])
    repeated = np.flatnonzero(documents != canonical)
    facts = {
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
    if plan.parameters.duplicates != "drop":
        return facts, replace(plan, shards=tuple(replace(shard, without=None) for shard in plan.shards))
    return facts, _without(plan, signed, documents[repeated])


def _report(plan: Plan, name: str) -> dict[str, Any]:
    """The report of the signatures of a shard. Raises BadInputError if their files were changed."""
    done = report.require(paths.report_uri(plan, "sign-documents", name), f"sign-documents of shard {name!r}")
    if changed := report.changed_output(done):
        raise BadInputError(
            f"{changed} was modified after its stage wrote it", "delete its folder, then run sign-documents again"
        )
    return done


def _without(plan: Plan, signed: "SignedShards", dropped: NDArray[np.int64]) -> Plan:
    """``plan`` without the documents ``dropped`` (ascending)."""

    records, bounds = signed.records_of(dropped), np.searchsorted(dropped, signed.offsets)
    shards = []
    for shard, first, end in zip(plan.shards, bounds.tolist(), bounds[1:].tolist(), strict=False):
        without = _written(plan, shard.name, records[first:end]) if first < end else None
        shards.append(replace(shard, without=without))
    return replace(plan, shards=tuple(shards))


def _written(plan: Plan, shard: str, records: NDArray[np.int64]) -> Source:
    """Write the numbers of the records that a shard leaves out, to a file named by its content."""

    content = digests.digest(np.ascontiguousarray(records, "<i8").tobytes().hex())
    with NpyWriter(paths.without_uri(plan, shard, content), np.int64, rows=len(records)) as writer:
        writer.append(records)
        written = writer.close()
    return Source(written.uri, written.bytes, f"sha256:{written.sha256}")
