"""Collects the figures of a dataset card from the reports of the stages."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import retro_ops
from retro_ops.execution import report
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.plan import Plan, Split, category
from retro_ops.plan.stage_graph import STAGES
from retro_ops.quality.card_examples import spread
from retro_ops.sizes import counted
from retro_ops.storage import read_ahead
from retro_ops.versions.split_files import split_files, split_from, split_reports

CARD_FORMAT = 1

COUNTED = ("documents", "chunks", "bad_records", "duplicates_dropped")
"""Counts of `tokenize-and-chunk`; the last one exists only where duplicates are dropped."""


def card(
    plan: Plan,
    measured: dict[Split, dict[str, Any]],
    examples: dict[Split, list[dict[str, Any]]],
    expected: dict[str, Any] | None,
    found: Mapping[str, dict[str, Any] | None],
    gpu_hour_price: float | None,
) -> dict[str, Any]:
    """The card as JSON.

    ``measured``: figures by split. ``expected``: the estimate of the plan. ``found``: what `find-duplicates`
    reported on duplicates and contamination; None where it did not look for them.
    ``gpu_hour_price``: in any currency; with None the card has no cost.
    """
    reports = _reports(plan)
    flat = [report for reports_of_stage in reports.values() for report in reports_of_stage]
    trained = reports["train-faiss-index"][0]["details"]
    contents, of_split = _contents(plan, reports), split_reports(plan)
    files = split_from(plan, of_split)
    return {
        "format": CARD_FORMAT,
        "dataset": plan.dataset,
        "version": digests.version_digest(plan),
        "skipped": list(plan.skipped),
        "totals": {
            "documents": sum(row["documents"] for row in contents),
            "chunks": sum(row["chunks"] for row in contents),
            "source_bytes": sum(source.bytes for shard in plan.shards for source in shard.sources),
            "stored_bytes": sum(output["bytes"] for report in flat for output in report["outputs"]),
        },
        "contents": contents,
        "split_corpus": split_files(of_split),
        **found,
        "index_type": {"type": trained["index_type"], "why": trained["why"]},
        "search": _search(plan, reports),
        "quality": measured,
        "removed": {split: _removed(plan, split, reports) for split in plan.splits()},
        "stages": stages(reports, expected, gpu_hour_price),
        "gpu_hour_price": gpu_hour_price,
        "expected_chunks": expected["chunks"]["all"] if expected else None,
        "parameters": asdict(plan.parameters),
        "provenance": {
            "software": retro_ops.__version__,
            "identity": asdict(plan.identity),
            "packages": {name: version for report in flat for name, version in report["packages"].items()},
            "images": sorted({report["image"] for report in flat if report["image"]}),
            "sources": [
                {"shard": shard.name, "split": shard.split, **asdict(source), **_origin(source.uri, files)}
                for shard in plan.shards
                for source in shard.sources
            ],
        },
        "examples": spread(examples),
    }


def _origin(part: str, files: Mapping[str, str]) -> dict[str, str]:
    """The entry for the user's file that ``part`` was split from, with a recipe."""
    return {"split_from": files[part]} if part in files else {}


Reports = dict[str, list[dict[str, Any]]]
"""Reports by stage, in order; those of a shard stage in the order of ``stage_graph.shards_of``."""


def _reports(plan: Plan) -> Reports:
    """Read all reports of ``plan``. Raises BadInputError if one is missing."""

    def read(stage: str, shard: str | None) -> dict[str, Any]:
        what = stage if shard is None else f"{stage} of shard {shard!r}"
        return report.require(paths.report_uri(plan, stage, shard), what)

    tasks = list(stage_graph.tasks(plan, [stage.name for stage in STAGES.values() if stage.unit]))
    reports: Reports = {}
    for (stage, _), done in zip(tasks, read_ahead.side_by_side(lambda task: read(*task), tasks), strict=True):
        reports.setdefault(stage, []).append(done)
    return reports


def _contents(plan: Plan, reports: Reports) -> list[dict[str, Any]]:
    """Counts by category and split; indexed and queried chunks are counted if not all shards are both."""
    choice = not all(shard.indexed and shard.queried for shard in plan.shards)
    counted = (*COUNTED, *(["contaminated_dropped"] if plan.benchmark_files else []))
    rows: dict[tuple[str, Split], dict[str, Any]] = {}
    for shard, done in zip(plan.shards, reports["tokenize-and-chunk"], strict=True):
        key = (category(shard.name), shard.split)
        row = rows.setdefault(key, {"category": key[0], "split": key[1], "shards": 0, **dict.fromkeys(counted, 0)})
        row["shards"] += 1
        for name in counted:
            row[name] += done["counts"].get(name, 0)
        if first := done["details"].get("first_bad_record"):
            row.setdefault("first_bad_record", first)
        if choice:
            for name, chosen in (("indexed_chunks", shard.indexed), ("queried_chunks", shard.queried)):
                row[name] = row.get(name, 0) + (done["counts"]["chunks"] if chosen else 0)
    return [rows[key] for key in sorted(rows)]


def _search(plan: Plan, reports: Reports) -> dict[str, dict[str, Any]]:
    """The tuned nprobe and candidates of each split, with the recall on the sample that they were tuned on."""
    details = reports["tune-search"][0]["details"]
    by_split: dict[str, dict[str, Any]] = {}
    for split in plan.splits():
        if split in details:
            tuned = details[split]
            width = tuned["width"]
            said = "exact search" if width is None else _width(width)
            by_split[split] = {**tuned, "said": said}
    return by_split


def _width(width: Mapping[str, int]) -> str:
    return f"{counted(width['nprobe'], 'list')} and {counted(width['candidates'], 'candidate')}"


def _removed(plan: Plan, split: Split, reports: Reports) -> dict[str, int]:
    totals: dict[str, int] = {}
    queried = stage_graph.shards_of(plan, "retrieve-neighbours")
    for shard, done in zip(queried, reports["retrieve-neighbours"], strict=True):
        if shard.split != split:
            continue
        for reason, count in done["details"].get("removed", {}).items():
            totals[reason] = totals.get(reason, 0) + count
    return totals


def _gpus(done: Mapping[str, Any]) -> int:
    """GPUs that the task of a report had. Reports of former releases do not say how many: one at least."""
    where = done["device"] or {"chosen": "cpu"}
    return int(where.get("gpus") or where["chosen"] == "cuda")


def stages(reports: Reports, expected: dict[str, Any] | None, gpu_hour_price: float | None) -> list[dict[str, Any]]:
    """Tasks, work, time, memory and, with ``gpu_hour_price``, cost of each stage: the sums of its reports."""
    rows = []
    for stage, done in reports.items():
        unit = str(STAGES[stage].unit)
        device = (done[0]["device"] or {"chosen": "cpu"})["chosen"]
        count, seconds = sum(m["counts"].get(unit, 0) for m in done), sum(m["seconds"] for m in done)
        gpu_seconds = sum(m["seconds"] * _gpus(m) for m in done)
        rows.append(
            {
                "stage": stage,
                "tasks": len(done),
                "unit": unit,
                "count": count,
                "seconds": round(seconds, 3),
                "gpu_seconds": round(gpu_seconds, 3),
                "cost": None if gpu_hour_price is None else round(gpu_seconds / 3600 * gpu_hour_price, 4),
                "rate": round(count / max(seconds, 1e-9), 3),
                "peak_rss_bytes": max(m["peak_rss_bytes"] for m in done),
                "expected_seconds": expected["seconds"][device].get(stage) if expected else None,
                "expected_peak_rss_bytes": expected["peak_rss_bytes"].get(stage) if expected else None,
            }
        )
    return rows
