"""Versions and files that nobody needs any more -> removed. Without --yes it only shows them."""

import json
import logging
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retro_ops import uris
from retro_ops.errors import BadInputError
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, source_list, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store
from retro_ops.storage.base import Stored
from retro_ops.uris import parent
from retro_ops.versions import history
from retro_ops.versions.audit import stages

HELP = "remove old versions and what only they, or runs that ended, use"
PARAMETERS = ()

STAGE = "prune"
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--root", required=True, help="folder or s3:// prefix that holds all datasets")
    parser.add_argument("--dataset", required=True, help="name of the dataset")
    parser.add_argument("--keep", type=int, required=True, help="newest versions to keep, besides the current one")
    parser.add_argument("--keep-version", type=int, action="append", default=[], help="another version to keep")
    parser.add_argument(
        "--grace", type=_seconds, default=2 * UNITS["d"], metavar="2d",
        help="a run that wrote nothing for so long is over (such as 90m, 12h, 2d; default 2d)",
    )  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="remove what would only be shown")
    parser.add_argument("--json", action="store_true", help="print the same facts as JSON")


def _seconds(text: str) -> float:
    if text[-1:] not in UNITS or not text[:-1].isdigit():
        raise ArgumentTypeError(f"{text!r} is not a time such as 12h or 2d")
    return int(text[:-1]) * float(UNITS[text[-1]])


@dataclass(frozen=True)
class _Unused:
    """Folder that nothing kept uses, with its objects."""

    folder: str
    objects: tuple[Stored, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.objects)


def run(arguments: Namespace, parameters: Parameters) -> None:
    if arguments.keep < 0:
        raise BadInputError(f"--keep {arguments.keep} is negative", "say how many versions to keep")
    root = arguments.root.rstrip("/")
    dataset = paths.dataset_folder(root, arguments.dataset)
    series = history.read(root, arguments.dataset)
    series.entry()
    kept = _kept(series, arguments.keep, arguments.keep_version)
    dropped = [number for number in series.entries if number not in kept.entries]
    oldest = time.time() - arguments.grace
    unused = _unused(dataset, kept, oldest)
    _show(unused, dropped, arguments)
    if not arguments.yes:
        return
    if dropped:
        history.write(kept)  # First, so that nobody goes back to what is being removed.
    # Looked at again: a run may have been planned since.
    read_ahead.side_by_side(_remove, _unused(dataset, kept, oldest))
    say(f"{STAGE}: done: {len(unused):,} folders of {arguments.dataset}", event="pruned")


def _kept(series: history.Series, newest: int, named: Sequence[int]) -> history.Series:
    for number in named:
        series.entry(number)
    last = sorted(series.entries)[len(series.entries) - min(newest, len(series.entries)) :]
    wanted = {series.current, *last, *named}
    return replace(series, entries={n: entry for n, entry in series.entries.items() if n in wanted})


def _unused(dataset: str, kept: history.Series, oldest: float) -> list[_Unused]:
    """Folders that no kept version and no running run uses, and in which nothing is new."""
    there = dict(_folders(dataset))
    used = {parent(kept.uri)}
    for number in kept.entries:
        uri = kept.plan_uri(number)
        used |= {*_of_plan(read_plan(uri)), *history.folders(kept.folder(number)), parent(uri)}
    for folder, uses in _runs(dataset, there):
        of_run = {folder, *uses}
        if any(entry.modified >= oldest for of in of_run for entry in there.get(of, ())):
            used |= of_run
    return [
        _Unused(folder, objects)
        for folder, objects in sorted(there.items())
        if folder not in used and all(entry.modified < oldest for entry in objects)
    ]


def _folders(dataset: str) -> Iterator[tuple[str, tuple[Stored, ...]]]:
    """Objects of the dataset by the folder that is kept or goes as a whole."""
    found: dict[str, list[Stored]] = {}
    for room, depth in (("corpus", 2), ("shards", 2), ("index", 1), ("versions", 1), ("runs", 1)):
        base = uris.join(dataset, room)
        for entry in store.at(base).objects(base):
            names = entry.uri[len(base) + 1 :].split("/")
            if len(names) > depth:
                found.setdefault(uris.join(base, *names[:depth]), []).append(entry)
    for folder, objects in found.items():
        yield folder, tuple(objects)


def _runs(dataset: str, there: Mapping[str, tuple[Stored, ...]]) -> Iterator[tuple[str, set[str]]]:
    """What each run uses, by every plan of it: as it was made, without failed shards, after the check for drift; and
    by its list of sources, as long as there is no plan."""
    for folder, objects in there.items():
        if parent(folder) == uris.join(dataset, "runs"):
            for uri in (entry.uri for entry in objects):
                try:
                    if paths.is_plan(uri):
                        plan = read_plan(uri)
                        yield folder, {*_of_plan(plan), *_of_base(plan)}
                    elif paths.is_list_of_sources(uri):
                        listed = source_list.from_json(store.read(uri), uri)
                        yield folder, {listed.parts_folder(file) for file in listed.files}
                except BadInputError as error:  # Nothing could go on with it.
                    say(f"{STAGE}: {error}", logging.WARNING)


def _of_plan(plan: Plan) -> set[str]:
    found = {paths.stage_folder(plan, stage, shard) for stage, shard in stage_graph.tasks(plan, stages(plan))}
    found |= {parent(source.uri) for shard in plan.shards for source in shard.sources} if plan.recipe else set()
    return found | {parent(shard.without.uri) for shard in plan.shards if shard.without}


def _of_base(plan: Plan) -> Iterable[str]:
    """What a run that starts from a version may still read of it."""
    if plan.base is None:
        return
    yield parent(paths.former_index_uri(plan, "train"))
    yield from (parent(paths.former_neighbours_uri(plan, shard)) for shard in plan.base.shards)


def _remove(unused: _Unused) -> None:
    """Reports go first: what is half removed must not count as done."""
    for entry in sorted(unused.objects, key=lambda entry: not entry.uri.endswith(paths.REPORT)):
        store.at(entry.uri).delete(entry.uri)


def _show(unused: Sequence[_Unused], dropped: Sequence[int], arguments: Namespace) -> None:
    size = sum(entry.bytes for entry in unused)
    if arguments.json:
        folders = [{"folder": entry.folder, "bytes": entry.bytes} for entry in unused]
        print(
            json.dumps(
                {"versions": list(dropped), "folders": folders, "bytes": size, "removed": arguments.yes}, indent=1
            )
        )
        return
    for entry in unused:
        print(f"{entry.bytes / 1e6:12,.1f} MB  {entry.folder}")
    would = "removes" if arguments.yes else "would remove (say --yes to do it)"
    print(f"{would}: versions {', '.join(map(str, dropped)) or 'none'}; {len(unused):,} folders, {size / 1e6:,.1f} MB")
