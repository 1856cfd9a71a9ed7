"""The source files of a recipe behind the parts of a plan, and what `split-corpus` set aside of them."""

import logging
from typing import Any, TypeAlias

from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.sizes import counted, some
from retro_ops.storage import read_ahead

SplitReports: TypeAlias = dict[str, dict[str, Any] | None]
"""The report of each source file, by URI, in the order of the parts; None where it is missing."""


def split_reports(plan: Plan) -> SplitReports:
    """Reports of the source files whose parts are in the shards of ``plan``; empty if the run uses no recipe."""
    if plan.recipe is None:
        return {}
    uris = list(dict.fromkeys(map(paths.split_report_uri, _parts(plan))))
    return dict(zip(uris, read_ahead.side_by_side(report.read, uris), strict=True))


def split_files(reports: SplitReports) -> dict[str, Any] | None:
    """Totals over the source files of a run; None if it uses no recipe.

    ``files``, ``bad_records``, ``left_out``, and ``first_bad_record`` where there is one. A record that was set aside
    belongs to a source file but to no shard, so these are counts of the version. Logs reports that are missing, as
    they are where a dataset was moved without the folder of its parts.
    """
    if not reports:
        return None
    if missing := [uri for uri, done in reports.items() if done is None]:
        files = counted(len(missing), "source file")
        say(f"bad records of {files} are not counted, as reports are missing: {some(missing, 3)}", logging.WARNING)
    found = [done for done in reports.values() if done is not None]
    totals: dict[str, Any] = {
        "files": len(reports),
        "bad_records": sum(done["counts"]["bad_records"] for done in found),
        "left_out": sum(done["counts"]["left_out"] for done in found),
    }
    first = next((done["details"]["first_bad_record"] for done in found if "first_bad_record" in done["details"]), None)
    return {**totals, "first_bad_record": first} if first else totals


def split_from(plan: Plan, reports: SplitReports) -> dict[str, str]:
    """The source file of each part, by URI, as far as ``reports`` say."""
    files = {uri: done["inputs"][0] for uri, done in reports.items() if done is not None}
    of_parts = {part: files.get(paths.split_report_uri(part)) for part in _parts(plan)}
    return {part: file for part, file in of_parts.items() if file is not None}


def _parts(plan: Plan) -> list[str]:
    return [source.uri for shard in plan.shards for source in shard.sources]
