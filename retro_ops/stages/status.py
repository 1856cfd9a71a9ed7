"""Shows which tasks of a run are done, missing or damaged, how long they took, and how long the rest would take.

Ends with exit code 65 if an output is damaged, or if a published version lacks one. In a run that is not finished,
missing outputs are only not built yet.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, stage_graph
from retro_ops.plan.estimate import read_estimate
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import show
from retro_ops.storage import store
from retro_ops.versions import audit, history
from retro_ops.versions.audit import TaskState


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--plan", help="plan of a run")
    add_place(parser, required=False, dataset="name of the dataset; without --run: its published version")
    parser.add_argument("--run", help="run of the dataset, such as an Airflow run id")
    parser.add_argument("--thorough", action="store_true", help="compare checksums, which reads all files")
    parser.add_argument("--all", action="store_true", help="also list complete shards")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: Namespace, parameters: Parameters) -> None:
    uri = arguments.plan or audit.last_plan_uri(_plan_uri(arguments))
    plan = read_plan(uri)
    entries = audit.audit(plan, thorough=arguments.thorough)
    left = _left(plan, uri, entries)
    if arguments.json:
        facts = {"plan": uri, "dataset": plan.dataset, "entries": [asdict(entry) for entry in entries]}
        show(json.dumps({**facts, "expected_seconds_left": left}, indent=1))
    else:
        show(f"{plan.dataset}: {uri}\n")
        show("\n".join(_table(plan, entries, show_all=arguments.all)))
        show("\n" + _summary(entries, left))
    _refuse_damage(plan, entries, published=not (arguments.plan or arguments.run))


def _refuse_damage(plan: Plan, entries: Sequence[TaskState], published: bool) -> None:
    """Raise BadInputError if outputs are damaged or, of a published version, missing; it says how to rebuild them."""
    bad = audit.unusable(entries, published)
    if not bad:
        return
    tasks = "1 task has" if len(bad) == 1 else f"{len(bad):,} tasks have"
    repair = f"retro-ops build --root {plan.root} --dataset {plan.dataset} --repair"
    raise BadInputError(
        f"{tasks} a damaged{' or missing' if published else ''} output, first {bad[0].report}: {bad[0].why}",
        f"repair the dataset: `{repair}`, or trigger retro_repair in Airflow"
        if published
        else "delete the report of each of these tasks, then run its stage again",
    )


def _plan_uri(arguments: Namespace) -> str:
    if not arguments.root or not arguments.dataset:
        raise BadInputError("no plan or dataset is given", "give --plan, or --root and --dataset")
    root = arguments.root.rstrip("/")
    if arguments.run:
        return paths.plan_uri(root, arguments.dataset, arguments.run)
    return history.read(root, arguments.dataset).plan_uri()


def _left(plan: Plan, plan_uri: str, entries: Sequence[TaskState]) -> float:
    """Estimated seconds of work left, from the tasks of a stage that are done, else from the estimate of the plan."""
    uri = paths.estimate_uri(plan_uri)
    expected = read_estimate(store.read(uri), uri)["seconds"].get("cpu", {}) if store.exists(uri) else {}
    total = 0.0
    for stage in audit.stages(plan):
        of_stage = [entry for entry in entries if entry.stage == stage]
        took = [entry.seconds for entry in of_stage if entry.state == "done" and entry.seconds is not None]
        each = sum(took) / len(took) if took else expected.get(stage, 0.0) / max(1, len(of_stage))
        total += each * sum(entry.state != "done" for entry in of_stage)
    return round(total, 1)


def _table(plan: Plan, entries: Sequence[TaskState], show_all: bool) -> list[str]:
    cells = {(entry.shard, entry.stage): entry for entry in entries}
    columns = [stage for stage in audit.stages(plan) if stage_graph.STAGES[stage].maps_over == "shard"]
    shards = [
        shard.name
        for shard in plan.shards
        if show_all or any(cell.state != "done" for cell in _of_shard(cells, shard.name, columns) if cell)
    ]
    width = max([len(name) for name in shards] + [len("shard")]) + 2
    lines = [f"{'shard':{width}}" + "".join(f"{stage:>22}" for stage in columns)] if shards else []
    lines += [
        f"{name:{width}}" + "".join(f"{_cell(cell):>22}" for cell in _of_shard(cells, name, columns)) for name in shards
    ]
    if hidden := len(plan.shards) - len(shards):
        lines.append(f"({hidden:,} of {len(plan.shards):,} shards are complete)")
    lines.append("")
    lines += [f"{stage:22}{_cell(cells[None, stage]):>12}" for stage in audit.stages(plan) if stage not in columns]
    damaged = [f"{entry.report}: {entry.why}" for entry in entries if entry.state == "damaged"]
    return lines + (["", "Damaged:", *damaged] if damaged else [])


def _of_shard(
    cells: Mapping[tuple[str | None, str], TaskState], name: str, stages: Sequence[str]
) -> list[TaskState | None]:
    """State of each stage for the shard ``name``; None where a stage does not run on it."""
    return [cells.get((name, stage)) for stage in stages]


def _cell(entry: TaskState | None) -> str:
    if entry is None:
        return "-"
    return f"{entry.seconds:,.1f} s" if entry.state == "done" and entry.seconds is not None else entry.state.upper()


def _summary(entries: Sequence[TaskState], left: float) -> str:
    counts = {state: sum(entry.state == state for entry in entries) for state in ("done", "missing", "damaged")}
    took = sum(entry.seconds or 0.0 for entry in entries if entry.state == "done")
    tasks = ", ".join(f"{count:,} {state}" for state, count in counts.items())
    rest = f"; the rest takes about {left:,.0f} s of work" if counts["missing"] or counts["damaged"] else ""
    return f"{tasks}. Finished tasks took {took:,.0f} s of work{rest}."
