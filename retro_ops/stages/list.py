"""Lists the published versions of a dataset as a table."""

import json
from argparse import ArgumentParser, Namespace

from retro_ops.execution.flags import add_place
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import show
from retro_ops.versions import history


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: Namespace, parameters: Parameters) -> None:
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    series.entry()
    if arguments.json:
        show(json.dumps({"current": series.current, "versions": list(series.entries.values())}, indent=1))
        return
    show(f"{'version':>8}  {'published':25}  {'as of':10}  {'shards':>7}  {'chunks':>12}  path")
    for number, entry in series.entries.items():
        counts, as_of = entry["counts"], entry.get("as_of") or ""
        show(
            f"{'*' if number == series.current else '':1}{number:>7}  {entry['published_at']:25}  "
            f"{as_of:10}  {counts.get('shards', 0):>7,}  {counts.get('chunks', 0):>12,}  {entry['path']}"
        )
    show("* current version")
