"""Computes the MinHash signatures of a shard's documents, and looks for benchmark texts in them."""

import logging
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from retro_ops.compute import device
from retro_ops.compute.workers import ahead, in_order
from retro_ops.corpus import json_lines, source_lines
from retro_ops.corpus.batches import batches
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report, shard_groups
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import Progress, say
from retro_ops.sizes import parse_bytes

if TYPE_CHECKING:
    from retro_ops.duplicates.contamination import Benchmarks

STAGE = "sign-documents"
BATCH_BYTES = 2**20
"""Bytes of lines that a process signs at a time; their n-gram strings take about 50 times as much memory."""

BATCH_DOCUMENTS = 4096
PARALLEL_BYTES = 16 * 2**20


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan and --shard."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run, and shards with --shard")
    plan = read_plan(arguments.plan)
    shard_groups.each(STAGE, plan, arguments.shard, partial(_run, plan, parse_bytes(parameters.memory_budget)))


def _run(plan: Plan, budget: int, name: str) -> None:
    shard = plan.shard(name)
    uri, digest = paths.report_uri(plan, STAGE, name), digests.sign_digest(plan, shard)
    inputs = [source.uri for source in shard.sources]
    report.run_once(STAGE, uri, digest, {}, inputs, partial(_work, plan, name, budget))


def _work(plan: Plan, name: str, budget: int) -> report.Outcome:
    shard = plan.shard(name)
    sources, inputs = shard.sources, (*shard.sources, *plan.benchmarks_of(shard))
    json_lines.check_unchanged(inputs)
    if read_benchmarks := _benchmarks(plan, name):
        read_benchmarks()  # Here a bad record is no damage of the shard.
    try:
        outcome = _sign(plan, name, [source.uri for source in sources], budget)
    except BadInputError as error:
        # The source file is damaged: `tokenize-and-chunk` will fail on it, and the other shards go on.
        damaged = str(error).partition("\n")[0]
        left_out = f"shard {name!r} is not compared with other documents or benchmark texts"
        say(f"{STAGE}: {damaged}; {left_out}", logging.WARNING, event="damaged")
        outcome = _sign(plan, name, [], budget, damaged)
    json_lines.check_unchanged(inputs)
    return outcome


def _benchmarks(plan: Plan, name: str) -> "Callable[[], Benchmarks] | None":
    """Reads the benchmark texts; None for a shard that is not compared with any."""
    uris = tuple(source.uri for source in plan.benchmarks_of(plan.shard(name)))
    if not uris:
        return None
    from retro_ops.duplicates import contamination

    chosen = plan.parameters
    return partial(contamination.read, uris, chosen.memory_budget, digests.line_limit(chosen))


def _sign(plan: Plan, name: str, uris: list[str], budget: int, damaged: str | None = None) -> report.Outcome:
    from retro_ops.duplicates import minhash, signatures

    line_bytes, text_field = digests.line_limit(plan.parameters), plan.parameters.text_field
    processes = device.cores() if json_lines.exceeds(uris, PARALLEL_BYTES) else 1
    read_benchmarks = _benchmarks(plan, name)
    benchmarks = read_benchmarks() if read_benchmarks else None  # Read once in this process.
    if benchmarks:
        processes = benchmarks.processes(processes, budget)
    sign = partial(signatures.signer, line_bytes, text_field, read_benchmarks)
    overlaps = paths.overlaps_uri(plan, name) if read_benchmarks else None
    lines: Counter[str] = Counter()
    progress = Progress(STAGE, None, "documents")
    with (
        signatures.SignatureWriter(paths.signature_files(plan, name), overlaps, budget) as out,
        ahead(batches(source_lines.lines(uris, line_bytes, text_field), BATCH_BYTES, BATCH_DOCUMENTS)) as read,
        ahead(in_order(sign, read, processes)) as made,
    ):
        for signed in made:
            out.append(signed)
            lines[signed.source] += signed.lines
            progress.advance(len(signed.places))
        progress.close()
        written = out.close()
    details: dict[str, Any] = {
        "ngram_words": minhash.NGRAM_WORDS,
        "permutations": minhash.PERMUTATIONS,
        "records_of_sources": [lines[source.uri] for source in plan.shard(name).sources],
        **({"benchmarks": benchmarks.counts} if benchmarks else {}),
        **({"damaged": damaged} if damaged else {}),
    }
    counts = {"documents": out.documents, "records": out.records}
    return report.Outcome(counts=counts, outputs=written, details=details)
