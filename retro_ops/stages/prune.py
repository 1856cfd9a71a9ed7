"""Removes old versions and unused files. Without --yes it only lists them."""

import json
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace

from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say, show
from retro_ops.sizes import counted, in_words
from retro_ops.storage import store
from retro_ops.uris import resolve
from retro_ops.versions import history, leases
from retro_ops.versions.unused import Unused, kept_versions, unused_folders

STAGE = "prune"
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument(
        "--keep", type=int, required=True, help="number of newest versions to keep; the current one is always kept"
    )
    parser.add_argument("--keep-version", type=int, action="append", default=[], help="another version to keep")
    parser.add_argument(
        "--grace", type=_seconds, default=2 * UNITS["d"], metavar="2d",
        help="a run that wrote nothing for this long counts as finished (such as 90m, 12h, 2d; default 2d)",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove the listed files")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _seconds(text: str) -> float:
    if text[-1:] not in UNITS or not text[:-1].isdigit():
        raise ArgumentTypeError(f"{text!r} is not a duration such as 12h or 2d")
    return int(text[:-1]) * float(UNITS[text[-1]])


def run(arguments: Namespace, parameters: Parameters) -> None:
    if arguments.keep < 0:
        raise BadInputError(f"--keep {arguments.keep} is negative", "give 0 or more")
    root = arguments.root.rstrip("/")
    dataset = paths.dataset_folder(root, arguments.dataset)
    series = history.read(root, arguments.dataset)
    series.entry()
    opened = sorted(leases.leased(root, arguments.dataset).keys() & series.entries.keys())
    if opened:
        say(f"{STAGE}: versions {', '.join(map(str, opened))} are open in a reader, and kept", event="open_versions")
    kept = kept_versions(series, arguments.keep, [*arguments.keep_version, *opened])
    dropped = [number for number in series.entries if number not in kept.entries]
    oldest = time.time() - arguments.grace
    unused = unused_folders(dataset, kept, oldest)
    _show(unused, dropped, arguments)
    if not arguments.yes:
        return
    if dropped:
        history.write(kept)  # First, so that no rollback can choose a version that is being removed.
    # Again, since a version may have been opened just before it was dropped, and a run planned meanwhile.
    leased = leases.leased(root, arguments.dataset)
    there = {n: entry for n, entry in leased.items() if store.exists(resolve(entry["plan"], series.uri))}
    unused = unused_folders(dataset, replace(kept, entries={**there, **kept.entries}), oldest)
    _remove(root, unused)
    leases.sweep(root, arguments.dataset)
    say(f"{STAGE}: removed {counted(len(unused), 'folder')} of {arguments.dataset}", event="pruned")


def _remove(root: str, unused: Sequence[Unused]) -> None:
    """Delete folders, reports first, so that no half-deleted output counts as done."""
    objects = [entry.uri for folder in unused for entry in folder.objects]
    for is_report in (True, False):
        store.at(root).delete_all([uri for uri in objects if uri.endswith(paths.REPORT) == is_report])


def _show(unused: Sequence[Unused], dropped: Sequence[int], arguments: Namespace) -> None:
    size = sum(entry.bytes for entry in unused)
    if arguments.json:
        folders = [{"folder": entry.folder, "bytes": entry.bytes} for entry in unused]
        show(
            json.dumps(
                {"versions": list(dropped), "folders": folders, "bytes": size, "removed": arguments.yes}, indent=1
            )
        )
        return
    for entry in unused:
        show(f"{in_words(entry.bytes):>12}  {entry.folder}")
    action = "removes" if arguments.yes else "would remove (with --yes)"
    found = f"{counted(len(unused), 'folder')}, {in_words(size)}"
    show(f"{action}: versions {', '.join(map(str, dropped)) or 'none'}; {found}")
