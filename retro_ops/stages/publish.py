"""Makes a validated version the current one of its dataset, by compare-and-swap on one object."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import PARAMETERS, Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.uris import parent, relative
from retro_ops.versions import card, history
from retro_ops.versions.condemned import read_condemned

STAGE = "publish"
CURRENT_FORMAT = 1


def add_arguments(parser: ArgumentParser) -> None:
    """This stage takes only --plan."""


def run(arguments: Namespace, parameters: Parameters) -> None:
    require_flags(arguments, "plan", remedy="name the plan of a run")
    plan = read_plan(arguments.plan)
    validated = paths.report_uri(plan, "validate")
    if report.read(validated) is None:
        raise BadInputError(
            f"this version is not validated: {validated} does not exist", "run `retro-ops validate` first"
        )
    _check_floors(plan, parameters)
    _check_condemned(plan)
    before = history.read(plan.root, plan.dataset)
    after, message = history.published(before, _entry(plan, arguments.plan, before.uri), plan)
    if after != before:
        history.write(after)
    say(f"{STAGE}: {plan.dataset}: {message}: {before.uri}", event="published", version=after.current)
    cells = paths.search_folder(arguments.plan)  # Large, and their neighbours are written.
    store.at(cells).delete_folder(cells)


def _check_condemned(plan: Plan) -> None:
    """Raise BadInputError if an output of this version was found damaged after the run was planned."""
    condemned = set(read_condemned(plan.root, plan.dataset))
    for stage, shard in stage_graph.tasks(plan, stage_graph.stages(plan)):
        if digests.output_digest(plan, stage, shard) in condemned:
            raise BadInputError(
                f"not published: {paths.stage_folder(plan, stage, shard)} was found damaged meanwhile",
                "start a new run: it rebuilds the damaged output and reuses everything else",
            )


def _check_floors(plan: Plan, parameters: Parameters) -> None:
    """Raise BadInputError that lists every figure of the card outside its limit."""
    uri = paths.card_uri(plan, "json")
    if report.read(paths.report_uri(plan, "describe")) is None:
        raise BadInputError(f"this version is not measured: {uri} does not exist", "run `retro-ops describe` first")
    beyond = [
        f"{name} of {split} is {value:.4f}, {limit}"
        for split, figures in card.quality(uri).items()
        for name, value, limit in _beyond(split, figures, parameters, plan.parameters.profile)
    ]
    if beyond:
        raise BadInputError(
            f"not published: {'; '.join(beyond)}",
            f"see {paths.card_uri(plan, 'html')}; raise {PARAMETERS['target_recall'].where}, choose another "
            f"index type or filter ({_flags('max_overlap', 'max_shared_run')}), or change the limit "
            f"({_flags('min_recall', 'min_full_rows', 'max_duplicates', 'max_leaked', 'max_imbalance')})",
        )


def _flags(*names: str) -> str:
    return ", ".join(PARAMETERS[name].flag for name in names)


def _beyond(
    split: str, figures: Mapping[str, Any], limits: Parameters, profile: str
) -> Iterator[tuple[str, float, str]]:
    """(figure, its value, the broken limit). The recall of the original's search is fixed, so it has no limit."""
    if profile != "seed" and figures["recall"] < limits.min_recall:
        yield "recall", figures["recall"], f"below {limits.min_recall}"
    if figures["fill_rate"] < limits.min_full_rows:
        yield "share of full rows", figures["fill_rate"], f"below {limits.min_full_rows}"
    if figures["near_duplicate"] > limits.max_duplicates:
        yield "share of near-duplicates", figures["near_duplicate"], f"above {limits.max_duplicates}"
    if split != "train" and figures["leaked"] > limits.max_leaked:
        yield "share of leaked rows", figures["leaked"], f"above {limits.max_leaked}"
    if limits.max_imbalance is not None and figures["index"]["imbalance"] > limits.max_imbalance:
        yield "imbalance of the index", figures["index"]["imbalance"], f"above {limits.max_imbalance}"


def _entry(plan: Plan, plan_uri: str, current: str) -> dict[str, Any]:
    folder = parent(current)
    specs = {split: relative(paths.dataset_spec_uri(plan, split), folder) for split in plan.splits()}
    counts = (report.read(paths.report_uri(plan, "write-specs")) or {}).get("counts", {})
    return {
        "format": CURRENT_FORMAT,
        "path": relative(paths.stage_folder(plan, "write-specs"), folder),
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": relative(paths.version_plan_uri(plan), folder),
        "run": relative(plan_uri, folder),
        "specs": specs,
        "card": relative(paths.card_uri(plan, "html"), folder),
        "counts": counts,
        "figures": card.published_figures(paths.card_uri(plan, "json")),
        "skipped": list(plan.skipped),
        "as_of": plan.as_of,
        "base": plan.base.version if plan.base else None,
    }
