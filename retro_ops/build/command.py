"""Runs all stages in this process, from a corpus or a recipe to a published version.

With ``--plan`` it continues the run of a plan; finished work is found and takes seconds. It stops at the first stage
that fails, with the exit code of that stage.
"""

import importlib
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from retro_ops.build.steps import Mode, Request, Step, flags, steps
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import check_code, read_plan
from retro_ops.plan import paths
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import NEVER_PLANNED, PARAMETERS, Parameters, read_by
from retro_ops.plan.plan import Plan
from retro_ops.plan.stage_graph import STAGES
from retro_ops.progress import say, show, sign_of_life
from retro_ops.stages import plan as plan_stage
from retro_ops.versions import card, history

PLANNED = ("corpus", "validation_corpus", "indexed", "queried", "as_of", "shards", "quick", "unset")
"""Arguments that only `plan` needs."""


USAGE = """%(prog)s --root ROOT --dataset NAME (--corpus FILES | --recipe RECIPE | --refresh | --repair) [options]
       %(prog)s --plan PLAN [options]"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument("--plan", help="resume the run of this plan instead of planning a new one")
    add_place(parser, required=False)
    parser.add_argument("--run", help="name of this run, for the folder of its plan (default: the current time)")
    parser.add_argument("--recipe", help="recipe of the corpus, instead of --corpus: see `retro-ops list-sources`")
    parser.add_argument("--source-folder", help="where the recipe's relative paths start (default: its own folder)")
    parser.add_argument("--repair-run", metavar="RUN", help="with --repair: repair this run, not the published version")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    plan_stage.add_choices(parser)


@dataclass
class Summary:
    """Seconds and number of shards (1 for a stage that runs once) by stage."""

    plan_uri: str
    seconds: dict[str, float] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """``version``, ``recall`` and ``card`` only where the run ended with a version."""
        facts: dict[str, Any] = {
            "plan": self.plan_uri,
            "nothing": "publish" not in self.seconds,
            "stages": {
                stage: {"seconds": round(taken, 2), "shards": self.shards[stage]}
                for stage, taken in self.seconds.items()
            },
        }
        return facts if facts["nothing"] else facts | _published(self.plan_uri)


def run(arguments: Namespace, parameters: Parameters) -> None:
    request = request_of(arguments)
    # A plan that is made here holds all parameters but a few.
    given = _given(arguments)
    changed = {name: value for name, value in given.items() if arguments.plan or name in NEVER_PLANNED}
    summary = Summary(plan_uri=request.plan_uri)
    for step in steps(request):
        summary.plan_uri = step.arguments.get("plan", request.plan_uri)
        started = time.monotonic()
        say(_announcement(step), event="stage", stage=step.stage, shards=step.shards)
        try:
            with sign_of_life(step.stage):
                perform(step, changed)
        except Exception:
            say(f"build: {step.stage} failed, see below. {_how_to_continue(step.stage, request)}", event="stopped")
            raise
        summary.seconds[step.stage] = time.monotonic() - started
        summary.shards[step.stage] = step.shards
    facts = summary.as_json()
    show(json.dumps(facts, indent=1) if arguments.json else _as_text(read_plan(summary.plan_uri), facts))


def _announcement(step: Step) -> str:
    """``build: embed-chunks (8 shards): embed chunks with a sentence-transformer``."""
    stage = STAGES[step.stage]
    number = f" ({step.shards:,} {stage.maps_over}{'s' if step.shards > 1 else ''})" if stage.maps_over else ""
    return f"build: {step.stage}{number}: {stage.help.replace('`', '')}"


def perform(step: Step, changed: Mapping[str, Any]) -> None:
    """Run a stage in this process. ``changed``: parameters that differ from those of the plan."""
    module = importlib.import_module(f"retro_ops.stages.{step.stage.replace('-', '_')}")
    parser = ArgumentParser(prog=f"retro-ops {step.stage}")
    module.add_arguments(parser)
    parser.add_argument("--plan")
    parser.add_argument("--shard", type=split_names)
    own = {name: value for name, value in step.arguments.items() if name in PARAMETERS}
    arguments = parser.parse_args(flags({name: step.arguments[name] for name in step.arguments if name not in own}))
    vars(arguments).update(own)
    parameters = Parameters()
    if arguments.plan:
        plan = read_plan(arguments.plan)
        check_code(plan, arguments.plan)
        parameters = plan.parameters
    module.run(arguments, replace(parameters, **own, **changed))


def _given(arguments: Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in PARAMETERS if hasattr(arguments, name)}


def request_of(arguments: Namespace) -> Request:
    """The run that the flags describe. BadInputError if they contradict each other."""
    mode: Mode = "refresh" if arguments.refresh else "repair" if arguments.repair else "build"
    if arguments.plan:
        fixed = ("root", "dataset", "run", "recipe", "source_folder", "repair_run", *PLANNED)
        if unused := flags({name: True for name in fixed if getattr(arguments, name)}):
            raise BadInputError(
                f"{', '.join(unused)}: fixed by the plan",
                "leave out --plan to start another run; what is done is reused",
            )
        return Request(arguments.plan, mode)
    require_flags(arguments, "root", "dataset", remedy="name both, or the plan of a run with --plan")
    if arguments.corpus and arguments.recipe:
        raise BadInputError(
            "--corpus and --recipe cannot be used together", "name the one that describes the documents"
        )
    if mode == "build" and not (arguments.corpus or arguments.recipe):
        raise BadInputError("no documents: --corpus and --recipe are missing", "name one of the two")
    root, dataset = arguments.root.rstrip("/"), arguments.dataset
    name = arguments.run or f"build-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    plan_uri, place, given = paths.plan_uri(root, dataset, name), {"root": root, "dataset": dataset}, _given(arguments)
    sources = None
    if arguments.recipe or (mode == "refresh" and not arguments.corpus and _is_from_recipe(root, dataset)):
        sources = {
            **place,
            **{key: getattr(arguments, key) for key in ("recipe", "source_folder", "refresh", "unset")},
            **{key: value for key, value in given.items() if key in read_by("list-sources")},
            "output": paths.sources_uri(root, dataset, name),
        }
    plan = {
        **place,
        **{key: getattr(arguments, key) for key in (*PLANNED, "refresh", "repair")},
        **given,
        "run": arguments.repair_run,
        "output": plan_uri,
    }
    return Request(plan_uri, mode, plan, sources)


def _is_from_recipe(root: str, dataset: str) -> bool:
    series = history.read(root, dataset)
    return bool(series.current and read_plan(series.plan_uri()).recipe)


def _how_to_continue(stage: str, request: Request) -> str:
    if stage in ("list-sources", "split-corpus", "plan"):
        return "Fix the cause and repeat this command."
    command = f"retro-ops build --plan {request.plan_uri}" + ("" if request.mode == "build" else f" --{request.mode}")
    return (
        f"Fix the cause and continue with: {command}. If you change a corpus file or a parameter, repeat this command "
        "instead: what is done is reused"
    )


def _published(plan_uri: str) -> dict[str, Any]:
    """``version``: its number; ``recall`` by split; ``card``: its page."""
    plan = read_plan(plan_uri)
    series, folder = history.read(plan.root, plan.dataset), paths.stage_folder(plan, "publish")
    quality = card.quality(paths.card_uri(plan, "json"))
    return {
        "version": next(number for number in series.entries if series.folder(number) == folder),
        "recall": {split: figures["recall"] for split, figures in quality.items()},
        "card": paths.card_uri(plan, "html"),
    }


def _as_text(plan: Plan, facts: Mapping[str, Any]) -> str:
    if facts["nothing"]:
        return f"{plan.dataset}: nothing to do, the published version is up to date"
    stages = facts["stages"]
    lines = [f"{plan.dataset}: version {facts['version']}"]
    lines += [f"  {stage:22}{of['seconds']:10,.1f} s" for stage, of in stages.items()]
    lines += [f"  {'all':22}{sum(of['seconds'] for of in stages.values()):10,.1f} s"]
    lines += [f"  recall of {split}: {recall:.4f}" for split, recall in facts["recall"].items()]
    lines += [f"  card: {facts['card']}"]
    lines += [f"Some chunks and their neighbours: retro-ops show --root {plan.root} --dataset {plan.dataset}"]
    return "\n".join(lines)
