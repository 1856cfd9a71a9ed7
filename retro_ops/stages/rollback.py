"""Makes an earlier version the current one again, by compare-and-swap on one object."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store
from retro_ops.versions import history

STAGE = "rollback"


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--to", type=int, required=True, help="version to make current; it may also be a later one")


def run(arguments: Namespace, parameters: Parameters) -> None:
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    files = sorted(set(history.files(series.folder(arguments.to))))
    is_there = read_ahead.side_by_side(store.exists, files)
    missing = [uri for uri, exists in zip(files, is_there, strict=True) if not exists]
    if missing:
        raise BadInputError(
            f"version {arguments.to} is incomplete: {len(missing):,} of its files are missing, the first: {missing[0]}",
            "choose another version (`retro-ops list`)",
        )
    if series.current == arguments.to:
        say(f"{STAGE}: version {arguments.to} of {arguments.dataset} is already the current one")
        return
    history.write(replace(series, current=arguments.to))
    message = f"{STAGE}: version {arguments.to} of {arguments.dataset} is now the current one, not {series.current}"
    say(message, event="rolled_back", version=arguments.to, before=series.current)
