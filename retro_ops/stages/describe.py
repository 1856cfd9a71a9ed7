"""Measures a built version and writes its dataset card: all figures as JSON, and an HTML page."""

import json
import logging
import math
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from retro_ops.search.chunk_reader import IndexedChunks
    from retro_ops.search.exact import Keys
    from retro_ops.search.samples import Drawn

STAGE = "describe"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--gpu-hour-price",
        type=_price,
        help="price of an hour of a GPU, in any currency: the card shows the cost of stages",
    )


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1
    if not 0 <= price < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a price; give 0 or more")
    return price


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    estimate = paths.estimate_uri(arguments.plan)
    digest = digests.digest(digests.CODE_VERSIONS[STAGE], digests.version_digest(plan))
    inputs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    expected = read_estimate(store.read(estimate), estimate) if store.exists(estimate) else None
    found = {name: _facts(uri(arguments.plan)) for name, uri in paths.FOUND.items()}
    loading = partial(planned, arguments.plan, plan)
    price = arguments.gpu_hour_price
    work = partial(_work, plan, arguments.plan, loading, parameters.device, expected, found, price)
    report.run_once(STAGE, paths.report_uri(plan, STAGE), digest, {}, inputs, work)


def _work(
    plan: Plan,
    plan_uri: str,
    load_tokenizer: Callable[[], Tokenizer],
    requested: str,
    expected: dict[str, Any] | None,
    found: Mapping[str, dict[str, Any] | None],
    gpu_hour_price: float | None,
) -> report.Outcome:
    from retro_ops.quality import card_page, measure
    from retro_ops.search import samples
    from retro_ops.search.chunk_reader import IndexedChunks

    where, tokenizer = device.choose(requested, "torch"), load_tokenizer()
    measured: dict[Split, dict[str, Any]] = {}
    examples: dict[Split, list[dict[str, Any]]] = {}
    for split in plan.splits():
        chunks = IndexedChunks(paths.index_shards(plan, split))
        drawn = samples.for_card(plan, split, chunks)
        truth = _truth(plan, plan_uri, split, chunks, drawn, where)
        stored = measure.with_neighbours(plan, drawn)
        measured[split] = measure.measure(plan, split, chunks, stored, truth)
        examples[split] = draw_examples(plan, split, chunks, stored, tokenizer)
    figures = card(plan, measured, examples, expected, found, gpu_hour_price)
    outputs = [
        store.write(paths.card_uri(plan, "json"), (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode()),
        store.write(paths.card_uri(plan, "html"), card_page.html(figures).encode()),
    ]
    say(f"{STAGE}: wrote the card {paths.card_uri(plan, 'html')}", event="described")
    counts = {"sampled_rows": sum(split["sampled_rows"] for split in measured.values())}
    return report.Outcome(counts=counts, outputs=outputs, device=where)


def _facts(uri: str) -> dict[str, Any] | None:
    """What `find-duplicates` wrote to ``uri``, if it ran."""
    return documents.read(store.read(uri), uri, dict[str, Any]) if store.exists(uri) else None


def _truth(
    plan: Plan, plan_uri: str, split: Split, chunks: "IndexedChunks", drawn: "Sequence[Drawn]", where: device.Device
) -> "Keys":
    """True neighbours of the sampled rows: from `search-samples` for a large index, else found here."""
    from retro_ops.quality import measure
    from retro_ops.search import hits, samples

    rows = sum(len(of.rows) for of in drawn)
    if not rows:
        say(f"{STAGE}: {split} has no rows, so nothing is measured", logging.WARNING, event="empty")
        return hits.Found.nothing(0, plan.parameters.num_neighbours).keys
    if found := samples.found_in_parts(plan, plan_uri, split, "card", rows):
        say(f"{STAGE}: {split}: true neighbours of {rows:,} rows from search-samples")
        return found.keys
    hardware = f"{where.chosen} ({where.why})"
    say(f"{STAGE}: {split}: exact search for {rows:,} rows in {chunks.total:,} chunks on {hardware}")
    return measure.true_neighbours(plan, split, chunks, drawn, where)
