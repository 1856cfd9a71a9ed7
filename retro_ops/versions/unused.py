"""Finds files that neither a kept version nor an unfinished run uses."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from retro_ops import uris
from retro_ops.errors import BadInputError
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, source_list, stage_graph
from retro_ops.plan.plan import Plan
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.storage.base import Stored
from retro_ops.uris import parent
from retro_ops.versions import history
from retro_ops.versions.audit import stages

APPROVAL_S = 30 * 86_400
"""How long a run that waits for approval counts as active: it writes nothing meanwhile."""


@dataclass(frozen=True)
class Unused:
    """An unused folder with its objects."""

    folder: str
    objects: tuple[Stored, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.objects)


def kept_versions(series: history.Series, newest: int, named: Sequence[int]) -> history.Series:
    """``series`` with only the current version, the ``newest`` ones and those ``named`` explicitly."""
    for number in named:
        series.entry(number)
    last = sorted(series.entries)[len(series.entries) - min(newest, len(series.entries)) :]
    wanted = {series.current, *last, *named}
    return replace(series, entries={n: entry for n, entry in series.entries.items() if n in wanted})


def unused_folders(dataset: str, kept: history.Series, oldest: float) -> list[Unused]:
    """Folders that no kept version and no active run uses, and whose objects are all older than ``oldest``.

    ``oldest``: seconds since 1970. A run is active if any object that it uses is newer, or if it waits for approval
    since no more than APPROVAL_S before that.
    """
    by_folder = dict(_folders(dataset))
    used = {parent(kept.uri)}
    for number in kept.entries:
        uri = kept.plan_uri(number)
        used |= {*_of_plan(read_plan(uri)), *history.folders(kept.folder(number)), parent(uri)}
    for folder, uses in _runs(dataset, by_folder):
        run_folders = {folder, *uses}
        if any(_active_until(entry) >= oldest for name in run_folders for entry in by_folder.get(name, ())):
            used |= run_folders
    return [
        Unused(folder, objects)
        for folder, objects in sorted(by_folder.items())
        if folder not in used and all(entry.modified < oldest for entry in objects)
    ]


def _active_until(entry: Stored) -> float:
    return entry.modified + (APPROVAL_S if paths.is_approval(entry.uri) else 0)


def _folders(dataset: str) -> Iterator[tuple[str, tuple[Stored, ...]]]:
    """Objects of the dataset, grouped by the folder that is kept or deleted as a whole."""
    by_folder: dict[str, list[Stored]] = {}
    for name, depth in (("corpus", 2), ("shards", 2), ("index", 1), ("versions", 1), ("runs", 1)):
        base = uris.join(dataset, name)
        for entry in store.at(base).objects(base):
            names = entry.uri[len(base) + 1 :].split("/")
            if len(names) > depth:
                by_folder.setdefault(uris.join(base, *names[:depth]), []).append(entry)
    for folder, objects in by_folder.items():
        yield folder, tuple(objects)


def _runs(dataset: str, by_folder: Mapping[str, tuple[Stored, ...]]) -> Iterator[tuple[str, set[str]]]:
    """(folder of a run, folders that it uses), from every revision of its plan and from its list of sources."""
    for folder, objects in by_folder.items():
        if parent(folder) == uris.join(dataset, "runs"):
            for uri in (entry.uri for entry in objects):
                try:
                    if paths.is_plan(uri):
                        plan = read_plan(uri)
                        yield folder, {*_of_plan(plan), *_of_base(plan)}
                    elif paths.is_list_of_sources(uri):
                        listed = source_list.from_json(store.read(uri), uri)
                        yield folder, {listed.parts_folder(file) for file in listed.files}
                except BadInputError as error:  # Such a run cannot continue anyway.
                    say(f"prune: {error}", logging.WARNING)


def _of_plan(plan: Plan) -> set[str]:
    """Folders that a plan writes, and the source parts that it reads."""
    folders = {paths.stage_folder(plan, stage, shard) for stage, shard in stage_graph.tasks(plan, stages(plan))}
    folders |= {parent(source.uri) for shard in plan.shards for source in shard.sources} if plan.recipe else set()
    return folders | {parent(source.uri) for shard in plan.shards for source in shard.left_out}


def _of_base(plan: Plan) -> Iterable[str]:
    """Folders of the base version that a run may still read."""
    if plan.base is None:
        return
    yield parent(paths.base_index_uri(plan, "train"))
    yield from (parent(paths.base_neighbours_uri(plan, shard)) for shard in plan.base.shards)
