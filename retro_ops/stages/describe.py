"""A built version -> its card: every figure as JSON, and one HTML page for people."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import retro_ops
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan, Shard, Split, category
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store

if TYPE_CHECKING:
    from retro_ops.quality.measure import Sampled
    from retro_ops.search.chunk_reader import IndexedChunks
    from retro_ops.tokens.tokenizer import Tokenizer

HELP = "measure the neighbours and write the dataset card"
PARAMETERS = ("device", "memory_budget", "search_memory")

STAGE = "describe"
CARD_FORMAT = 1
EXAMPLES = 20
LEAST_SHARED_WORDS = 3
COUNTED = ("documents", "chunks", "bad_records", "duplicates_dropped")
"""Of `tokenize-and-chunk`; the last only where duplicates are dropped."""

UNITS = {
    "tokenize-and-chunk": "documents",
    "embed-chunks": "chunks",
    "train-faiss-index": "training_vectors",
    "build-faiss-index": "vectors",
    "merge-indexes": "vectors",
    "tune-search": "queries",
    "retrieve-neighbours": "rows",
}
"""Stages in order, and what their rate counts."""


def add_arguments(parser: ArgumentParser) -> None:
    """Only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        raise BadInputError("--plan is missing")
    plan = read_plan(arguments.plan)
    estimate = paths.estimate_uri(arguments.plan)
    digest = digests.digest(digests.CODE_VERSIONS[STAGE], digests.version_digest(plan))
    inputs = [paths.dataset_spec_uri(plan, split) for split in plan.splits()]
    duplicates = paths.duplicates_uri(arguments.plan)
    expected = json.loads(store.read(estimate)) if store.exists(estimate) else None
    repeats = json.loads(store.read(duplicates)) if store.exists(duplicates) else None
    plan = replace(plan, parameters=replace(plan.parameters, search_memory=parameters.search_memory))
    work = partial(_work, plan, parameters.device, expected, repeats)
    report.run_once(STAGE, paths.report_uri(plan, STAGE), digest, {}, inputs, work)


def _work(
    plan: Plan, requested: str, expected: dict[str, Any] | None, repeats: dict[str, Any] | None
) -> report.Outcome:
    from retro_ops.compute import device
    from retro_ops.quality import card_page, measure
    from retro_ops.search import chunk_reader
    from retro_ops.tokens.tokenizer import Tokenizer

    where = device.choose(requested, "torch")
    tokenizer = Tokenizer(plan.parameters.tokenizer, plan.parameters.pad_id)
    measured: dict[Split, dict[str, Any]] = {}
    examples: dict[Split, list[dict[str, Any]]] = {}
    for split in plan.splits():
        chunks = chunk_reader.IndexedChunks(paths.index_shards(plan, split))
        drawn = measure.sample(plan, split, chunks)
        rows = sum(len(of.rows) for of in drawn)
        on = f"{where.chosen} ({where.why})"
        say(f"{STAGE}: {split}: exact search for {rows:,} rows in {chunks.total:,} chunks, {on}")
        measured[split] = measure.measure(plan, split, chunks, drawn, where)
        examples[split] = _examples(plan, split, chunks, drawn, tokenizer)
    made = _card(plan, measured, examples, expected, repeats)
    outputs = [
        store.write(paths.card_uri(plan, "json"), (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()),
        store.write(paths.card_uri(plan, "html"), card_page.html(made).encode()),
    ]
    say(f"{STAGE}: the card is {paths.card_uri(plan, 'html')}", event="described")
    counts = {"sampled_rows": sum(m["sampled_rows"] for m in measured.values())}
    return report.Outcome(counts=counts, outputs=outputs, device=where)


def _card(
    plan: Plan,
    measured: dict[Split, dict[str, Any]],
    examples: dict[Split, list[dict[str, Any]]],
    expected: dict[str, Any] | None,
    repeats: dict[str, Any] | None,
) -> dict[str, Any]:
    reports = _reports(plan)
    flat = [made for of_stage in reports.values() for made in of_stage]
    trained = reports["train-faiss-index"][0]["details"]
    contents = _contents(plan, reports)
    return {
        "format": CARD_FORMAT,
        "dataset": plan.dataset,
        "version": digests.version_digest(plan),
        "skipped": list(plan.skipped),
        "totals": {
            "documents": sum(row["documents"] for row in contents),
            "chunks": sum(row["chunks"] for row in contents),
            "source_bytes": sum(source.bytes for shard in plan.shards for source in shard.sources),
            "stored_bytes": sum(output["bytes"] for made in flat for output in made["outputs"]),
        },
        "contents": contents,
        "duplicates": repeats,
        "index_type": {"type": trained["index_type"], "why": trained["why"]},
        "search": _search(plan, reports),
        "quality": measured,
        "removed": {split: _removed(plan, split, reports) for split in plan.splits()},
        "stages": _stages(reports, expected),
        "expected_chunks": expected["chunks"]["all"] if expected else None,
        "parameters": asdict(plan.parameters),
        "provenance": {
            "software": retro_ops.__version__,
            "identity": asdict(plan.identity),
            "packages": {name: version for made in flat for name, version in made["packages"].items()},
            "images": sorted({made["image"] for made in flat if made["image"]}),
            "sources": [
                {"shard": shard.name, "split": shard.split, **asdict(source)}
                for shard in plan.shards
                for source in shard.sources
            ],
        },
        "examples": _spread(examples),
    }


Reports = dict[str, list[dict[str, Any]]]
"""Of each stage in order; those of a shard stage in the order of ``layout.shards_of``."""


def _reports(plan: Plan) -> Reports:
    """Each is read once. BadInputError names one that is missing."""

    def read(stage: str, shard: str | None) -> dict[str, Any]:
        what = stage if shard is None else f"{stage} of shard {shard!r}"
        return report.require(paths.report_uri(plan, stage, shard), what)

    tasks = list(stage_graph.tasks(plan, UNITS))
    found: Reports = {}
    for (stage, _), made in zip(tasks, read_ahead.side_by_side(lambda of: read(*of), tasks), strict=True):
        found.setdefault(stage, []).append(made)
    return found


def _contents(plan: Plan, reports: Reports) -> list[dict[str, Any]]:
    """Counts by category and split; of what is indexed and what is queried, where that is not everything."""
    choice = not all(shard.indexed and shard.queried for shard in plan.shards)
    rows: dict[tuple[str, Split], dict[str, Any]] = {}
    for shard, made in zip(plan.shards, reports["tokenize-and-chunk"], strict=True):
        key = (category(shard.name), shard.split)
        row = rows.setdefault(key, {"category": key[0], "split": key[1], "shards": 0, **dict.fromkeys(COUNTED, 0)})
        row["shards"] += 1
        for name in COUNTED:
            row[name] += made["counts"].get(name, 0)
        if choice:
            for name, chosen in (("indexed_chunks", shard.indexed), ("queried_chunks", shard.queried)):
                row[name] = row.get(name, 0) + (made["counts"]["chunks"] if chosen else 0)
    return [rows[key] for key in sorted(rows)]


def _search(plan: Plan, reports: Reports) -> dict[str, dict[str, Any]]:
    """How wide each split was searched, and the recall that this had on the sample it was chosen on."""
    details = reports["tune-search"][0]["details"]
    found: dict[str, dict[str, Any]] = {}
    for split in plan.splits():
        if split in details:
            tuned = details[split]
            width = tuned["width"]
            said = "exact search" if width is None else f"{width['nprobe']} lists and {width['candidates']} candidates"
            found[split] = {**tuned, "said": said}
    return found


def _removed(plan: Plan, split: Split, reports: Reports) -> dict[str, int]:
    totals: dict[str, int] = {}
    queried = stage_graph.shards_of(plan, "retrieve-neighbours")
    for shard, made in zip(queried, reports["retrieve-neighbours"], strict=True):
        if shard.split != split:
            continue
        for reason, count in made["details"].get("removed", {}).items():
            totals[reason] = totals.get(reason, 0) + count
    return totals


def _stages(reports: Reports, expected: dict[str, Any] | None) -> list[dict[str, Any]]:
    rows = []
    for stage, made in reports.items():
        unit = UNITS[stage]
        device = (made[0]["device"] or {"chosen": "cpu"})["chosen"]
        count, seconds = sum(m["counts"].get(unit, 0) for m in made), sum(m["seconds"] for m in made)
        rows.append(
            {
                "stage": stage,
                "tasks": len(made),
                "unit": unit,
                "count": count,
                "seconds": round(seconds, 3),
                "rate": round(count / max(seconds, 1e-9), 3),
                "peak_rss_bytes": max(m["peak_rss_bytes"] for m in made),
                "expected_seconds": expected["seconds"][device].get(stage) if expected else None,
                "expected_peak_rss_bytes": expected["peak_rss_bytes"].get(stage) if expected else None,
            }
        )
    return rows


def _examples(
    plan: Plan, split: Split, chunks: "IndexedChunks", drawn: "Sequence[Sampled]", tokenizer: "Tokenizer"
) -> list[dict[str, Any]]:
    """Sampled chunks with their neighbours as text, one shard after the other."""
    rows = [(of, i) for i in range(EXAMPLES) for of in drawn if i < len(of.rows)][:EXAMPLES]
    found = []
    for of, i in rows:
        assert of.queries.tokens is not None
        text = " ".join(tokenizer.decode(of.queries.tokens[i : i + 1])[0].split())
        kept = of.neighbours[i] >= 0
        ids = of.neighbours[i][kept]
        others = [" ".join(other.split()) for other in tokenizer.decode(chunks.tokens(ids))] if len(ids) else []
        found.append(
            {
                "split": split,
                "place": _place(plan, of.shard, int(of.rows[i])),
                "text": text,
                "neighbours": [
                    {
                        "place": _place_of_id(plan, chunks, int(number), split),
                        "distance": float(distance),
                        "words": shared_words(text, other),
                    }
                    for number, distance, other in zip(ids, of.distances[i][kept], others, strict=True)
                ],
            }
        )
    return found


def _place_of_id(plan: Plan, chunks: "IndexedChunks", number: int, split: Split) -> str:
    import numpy as np

    position = int(np.searchsorted(chunks.offsets, number, side="right")) - 1
    return _place(plan, plan.indexed(split)[position], number - int(chunks.offsets[position]))


def _place(plan: Plan, shard: Shard, row: int) -> str:
    """``00_books / 17 / 403``: shard, document and chunk, both numbered within the shard."""
    from retro_ops.storage.npy import open_npy

    document = int(open_npy(paths.chunks_files(plan, shard.name)["chunk2seq"]).rows(row, row + 1)[0])
    return f"{shard.name} / {document} / {row}"


def shared_words(text: str, other: str) -> list[tuple[str, bool]]:
    """``other`` in pieces: (words, whether ``text`` has the same run of three words or more)."""
    from difflib import SequenceMatcher

    words = other.split()
    runs = SequenceMatcher(None, text.split(), words, autojunk=False).get_matching_blocks()
    pieces, at = [], 0
    for run in runs:
        if run.size >= LEAST_SHARED_WORDS:
            pieces += [(" ".join(words[at : run.b]), False), (" ".join(words[run.b : run.b + run.size]), True)]
            at = run.b + run.size
    return [piece for piece in [*pieces, (" ".join(words[at:]), False)] if piece[0]]


def _spread(examples: dict[Split, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Twenty in all, from each split in turn."""
    longest = max(map(len, examples.values()), default=0)
    turns = [of[i] for i in range(longest) for of in examples.values() if i < len(of)]
    return sorted(turns[:EXAMPLES], key=lambda example: example["split"])
