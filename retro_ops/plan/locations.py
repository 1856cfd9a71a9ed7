"""Locations that a task passes to the next tasks, and the objects that exist if and only if its stage is done.

Both follow from the arguments of the stage and the plan alone, not from the output of its process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from retro_ops.plan import paths, source_list
from retro_ops.plan.grid import parse_cell
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.plan import Plan, plan_from_json
from retro_ops.plan.sample_parts import parse_part
from retro_ops.plan.stage_graph import STAGES
from retro_ops.uris import join

NEXT_PLAN = {"find-duplicates": "deduplicated", "check-drift": "decided"}
"""Step of the plan that a stage writes for the next stages."""


@dataclass(frozen=True)
class Locations:
    result: dict[str, str]
    """Passed to the next tasks; the report of a group of shards is that of its last shard."""
    markers: list[str]
    """Objects that exist if and only if the stage is done."""


def locations(stage: str, arguments: Mapping[str, str], read: Callable[[str], bytes]) -> Locations:
    """Locations of the task that runs ``stage`` with ``arguments`` (flags without dashes). ``read`` reads an object."""
    if stage not in STAGES:  # Rollback and prune: they change what is published, and have no plan.
        return Locations({"stage": stage, **arguments}, [paths.current_uri(arguments["root"], arguments["dataset"])])
    marker = STAGES[stage].marker
    if marker == "output":
        return Locations({_kind_of_output(stage): arguments["output"]}, [arguments["output"]])
    if marker == "next plan":
        plan_uri = paths.next_plan_uri(arguments["plan"], NEXT_PLAN[stage])
        return Locations({"plan": plan_uri}, [plan_uri])
    if marker == "parts":
        listed = source_list.from_json(read(arguments["sources"]), arguments["sources"])
        markers = [listed.report_uri(listed.file(name)) for name in split_names(arguments["file"])]
    else:
        plan = plan_from_json(read(arguments["plan"]), arguments["plan"])
        if marker == "current":
            markers = [paths.current_uri(plan.root, plan.dataset)]
        elif "cell" in arguments:
            cells = map(parse_cell, split_names(arguments["cell"]))
            folders = [paths.cell_folder(plan, arguments["plan"], cell) for cell in cells]
            markers = [join(folder, paths.REPORT) for folder in folders]
        elif "part" in arguments:
            parts = map(parse_part, split_names(arguments["part"]))
            folders = [paths.sample_folder(plan, arguments["plan"], part) for part in parts]
            markers = [join(folder, paths.REPORT) for folder in folders]
        else:
            shards = split_names(arguments["shard"]) if "shard" in arguments else [None]
            markers = [_report_uri(plan, arguments["plan"], stage, shard) for shard in shards]
    return Locations({"stage": stage, **arguments, "report": markers[-1]}, markers)


def _report_uri(plan: Plan, plan_uri: str, stage: str, shard: str | None) -> str:
    if stage == "validate-shards" and shard is not None:
        return paths.checked_shard_uri(plan, plan_uri, shard)
    return paths.report_uri(plan, stage, shard)


def _kind_of_output(stage: str) -> str:
    return "sources" if stage == "list-sources" else "plan"
