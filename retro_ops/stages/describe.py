"""Measures a built version and writes its dataset card: all figures as JSON, and an HTML page."""

import json
import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from retro_ops.compute import device
from retro_ops.errors import require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, documents, paths
from retro_ops.plan.estimate import read_estimate
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Split
from retro_ops.progress import say
from retro_ops.quality.card_examples import draw_examples
from retro_ops.quality.card_figures import card
from retro_ops.storage import store
from retro_ops.tokens.tokenizer import Tokenizer, planned

STAGE = "describe"


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    estimate = paths.estimate_uri(arguments.plan)
    digest = digests.digest(digests.CODE_VERSIONS[STAGE], digests.version_digest(plan))
    inputs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    duplicates = paths.duplicates_uri(arguments.plan)
    expected = read_estimate(store.read(estimate), estimate) if store.exists(estimate) else None
    repeats = documents.read(store.read(duplicates), duplicates, dict[str, Any]) if store.exists(duplicates) else None
    work = partial(_work, plan, partial(planned, arguments.plan, plan), parameters.device, expected, repeats)
    report.run_once(STAGE, paths.report_uri(plan, STAGE), digest, {}, inputs, work)


def _work(
    plan: Plan,
    load_tokenizer: Callable[[], Tokenizer],
    requested: str,
    expected: dict[str, Any] | None,
    repeats: dict[str, Any] | None,
) -> report.Outcome:
    from retro_ops.quality import card_page, measure
    from retro_ops.search import chunk_reader

    where, tokenizer = device.choose(requested, "torch"), load_tokenizer()
    measured: dict[Split, dict[str, Any]] = {}
    examples: dict[Split, list[dict[str, Any]]] = {}
    for split in plan.splits():
        chunks = chunk_reader.IndexedChunks(paths.index_shards(plan, split))
        drawn = measure.sample(plan, split, chunks)
        rows = sum(len(shard.rows) for shard in drawn)
        hardware = f"{where.chosen} ({where.why})"
        if rows:
            say(f"{STAGE}: {split}: exact search for {rows:,} rows in {chunks.total:,} chunks on {hardware}")
        else:
            say(f"{STAGE}: {split} has no rows, so nothing is measured", logging.WARNING, event="empty")
        measured[split] = measure.measure(plan, split, chunks, drawn, where)
        examples[split] = draw_examples(plan, split, chunks, drawn, tokenizer)
    figures = card(plan, measured, examples, expected, repeats)
    outputs = [
        store.write(paths.card_uri(plan, "json"), (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode()),
        store.write(paths.card_uri(plan, "html"), card_page.html(figures).encode()),
    ]
    say(f"{STAGE}: wrote the card {paths.card_uri(plan, 'html')}", event="described")
    counts = {"sampled_rows": sum(split["sampled_rows"] for split in measured.values())}
    return report.Outcome(counts=counts, outputs=outputs, device=where)
