"""Shows how two versions of a dataset differ: shards (by content), rebuilt outputs of equal shards, parameters, counts
and figures of the cards."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.card import FIGURES
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.shard_changes import compare, rebuilt
from retro_ops.progress import show
from retro_ops.versions import card, history

NAMED = 10
"""Most rebuilt shards that are named."""


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--from", type=int, dest="before", help="earlier version (default: the one before --to)")
    parser.add_argument("--to", type=int, dest="after", help="later version (default: the current one)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: Namespace, parameters: Parameters) -> None:
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    after = series.entry(arguments.after)["version"]
    before = arguments.before or max((number for number in series.entries if number < after), default=None)
    if before is None:
        only = len(series.entries) == 1
        raise BadInputError(
            f"{arguments.dataset} has no version before {after}",
            "there is nothing to compare yet" if only else "name a version with --from",
        )
    facts = _facts(series, before, after)
    show(json.dumps(facts, indent=1) if arguments.json else _text(facts))


def _facts(series: history.Series, before: int, after: int) -> dict[str, Any]:
    old, new = (read_plan(series.plan_uri(number)) for number in (before, after))
    changes = compare(old.shards, new.shards)
    others = rebuilt(old, new)
    parameters = {
        key: [value, getattr(new.parameters, key)]
        for key, value in asdict(old.parameters).items()
        if value != getattr(new.parameters, key)
    }
    counts = [series.entry(number)["counts"] for number in (before, after)]
    cards = [_figures(series.folder(number)) for number in (before, after)]
    return {
        "from": before,
        "to": after,
        "shards": asdict(changes),
        "rebuilt": {
            "shards": {name: stages for name, stages in others.items() if name and name not in changes.changed},
            "index": others.get(None, ()),
        },
        "parameters": parameters,
        "counts": {key: [counts[0].get(key), counts[1].get(key)] for key in counts[1]},
        "figures": {key: [cards[0].get(key), cards[1][key]] for key in cards[1]},
    }


def _figures(folder: str) -> dict[str, float]:
    quality = card.quality(paths.card_in(folder, "json"))
    return {f"{split} {name}": round(figures[name], 4) for split, figures in quality.items() for name in FIGURES}


def _text(facts: Mapping[str, Any]) -> str:
    lines = [f"version {facts['from']} -> {facts['to']}"]
    for kind in ("added", "changed", "removed"):
        names = facts["shards"][kind]
        lines.append(f"shards {kind}: {len(names):,}" + (f" ({', '.join(names)})" if names else ""))
    lines.append(f"shards unchanged: {facts['shards']['unchanged']:,}")
    lines += _rebuilt(facts["rebuilt"])
    for section in ("parameters", "counts", "figures"):
        lines += [f"{_named(key)}: {_shown(a)} -> {_shown(b)}" for key, (a, b) in facts[section].items() if a != b]
    return "\n".join(lines)


def _rebuilt(outputs: Mapping[str, Any]) -> Iterator[str]:
    """A line for the shards of which the same outputs were rebuilt, and one for the index."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, stages in outputs["shards"].items():
        alike.setdefault(tuple(stages), []).append(name)
    for stages, names in alike.items():
        named = ", ".join(names) if len(names) <= NAMED else f"{len(names):,} unchanged shards"
        yield f"rebuilt: {named} ({', '.join(stages)})"
    if outputs["index"]:
        yield f"rebuilt: the index ({', '.join(outputs['index'])})"


def _named(key: str) -> str:
    """A long shared run of a training row leaks nothing."""
    return "train long shared runs" if key == "train leaked" else key


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
