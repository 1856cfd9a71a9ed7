"""A validated version -> the current one, by compare-and-swap on one object."""

import json
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from typing import Any

from retro_ops import layout, report, store
from retro_ops.errors import BadInputError
from retro_ops.plans import read_plan
from retro_ops.progress import say
from retro_ops.specs import Parameters, Plan, parent, relative

HELP = "make a validated version the current one of its dataset"
PARAMETERS = ("min_recall", "min_full_rows")

STAGE = "publish"
CURRENT_FORMAT = 1


def add_arguments(parser: ArgumentParser) -> None:
    """Only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        raise BadInputError("--plan is missing")
    plan = read_plan(arguments.plan)
    validated = layout.report_uri(plan, "validate")
    if report.read(validated) is None:
        raise BadInputError(f"this version is not validated: {validated} does not exist", "run `retro-ops validate`")
    _check_floors(plan, parameters)
    uri = layout.current_uri(plan.root, plan.dataset)
    tagged = store.at(uri).read_tagged(uri)
    current = json.loads(tagged[0]) if tagged else None
    entry = _entry(plan, uri)
    if current and current["path"] == entry["path"]:
        say(f"{STAGE}: version {current['version']} of {plan.dataset} is already the current one: {uri}")
        return
    history = [*current["history"], {k: v for k, v in current.items() if k != "history"}] if current else []
    published = {"version": current["version"] + 1 if current else 1, **entry, "history": history}
    data = (json.dumps(published, indent=1) + "\n").encode()
    store.at(uri).write_if(uri, data, tagged[1] if tagged else None)
    say(f"{STAGE}: version {published['version']} of {plan.dataset} is published: {uri}", event="published")


def _check_floors(plan: Plan, parameters: Parameters) -> None:
    """BadInputError that names every figure below its floor. Splits that nobody measured (seed profile) pass."""
    tuned = (report.read(layout.report_uri(plan, "tune-search")) or {}).get("details", {})
    below = [
        f"recall of {split} is {tuned[split]['recall']:.4f}, below {parameters.min_recall}"
        for split in plan.splits()
        if split in tuned and tuned[split]["recall"] < parameters.min_recall
    ]
    for split in plan.splits():
        reports = [report.read(layout.report_uri(plan, "retrieve-neighbours", s.name)) for s in plan.queried(split)]
        rows, full = (sum(r["counts"][name] for r in reports if r) for name in ("rows", "full_rows"))
        if rows and full / rows < parameters.min_full_rows:
            share = f"{full / rows:.4f} of the rows of {split} have all their neighbours"
            below.append(f"{share}, below {parameters.min_full_rows}")
    if below:
        raise BadInputError(
            f"not published: {'; '.join(below)}",
            "raise target_recall or choose another index type, or lower the floor (min_recall, min_full_rows)",
        )


def _entry(plan: Plan, current: str) -> dict[str, Any]:
    folder = parent(current)
    specs = {split: relative(layout.dataset_spec_uri(plan, split), folder) for split in plan.splits()}
    counts = (report.read(layout.report_uri(plan, "write-specs")) or {}).get("counts", {})
    return {
        "format": CURRENT_FORMAT,
        "path": relative(layout.stage_folder(plan, "write-specs"), folder),
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "specs": specs,
        "counts": counts,
        "skipped": list(plan.skipped),
    }
