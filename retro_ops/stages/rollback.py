"""An earlier version -> the current one again, by compare-and-swap on one object."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store
from retro_ops.versions import history

HELP = "make an earlier version the current one"
PARAMETERS = ()

STAGE = "rollback"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix that holds all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--to", type=int, required=True, help="version to go back (or forth) to")


def run(arguments: Namespace, parameters: Parameters) -> None:
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    files = sorted(set(history.files(series.folder(arguments.to))))
    there = read_ahead.side_by_side(store.exists, files)
    gone = [uri for uri, is_there in zip(files, there, strict=True) if not is_there]
    if gone:
        raise BadInputError(
            f"version {arguments.to} is not whole: {len(gone):,} of its files are gone, the first: {gone[0]}",
            "choose another version (`retro-ops list`)",
        )
    if series.current == arguments.to:
        say(f"{STAGE}: version {arguments.to} of {arguments.dataset} is the current one already")
        return
    history.write(replace(series, current=arguments.to))
    said = f"{STAGE}: version {arguments.to} of {arguments.dataset} is the current one, instead of {series.current}"
    say(said, event="rolled_back", version=arguments.to, before=series.current)
