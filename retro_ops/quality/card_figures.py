"""The figures of a card, gathered from reports."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import retro_ops
from retro_ops.execution import report
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.plan import Plan, Split, category
from retro_ops.storage import read_ahead

if TYPE_CHECKING:
    pass
from retro_ops.plan.stage_graph import STAGES
from retro_ops.quality.card_examples import spread

CARD_FORMAT = 1

COUNTED = ("documents", "chunks", "bad_records", "duplicates_dropped")
"""Of `tokenize-and-chunk`; the last only where duplicates are dropped."""


def card(
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
        "examples": spread(examples),
    }


Reports = dict[str, list[dict[str, Any]]]
"""Of each stage in order; those of a shard stage in the order of ``layout.shards_of``."""


def _reports(plan: Plan) -> Reports:
    """Each is read once. BadInputError names one that is missing."""

    def read(stage: str, shard: str | None) -> dict[str, Any]:
        what = stage if shard is None else f"{stage} of shard {shard!r}"
        return report.require(paths.report_uri(plan, stage, shard), what)

    tasks = list(stage_graph.tasks(plan, [stage.name for stage in STAGES.values() if stage.unit]))
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
        unit = str(STAGES[stage].unit)
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
