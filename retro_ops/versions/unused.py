"""Files that no kept version and no unfinished run uses."""

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


@dataclass(frozen=True)
class Unused:
    """Folder that nothing kept uses, with its objects."""

    folder: str
    objects: tuple[Stored, ...]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.objects)


def kept_versions(series: history.Series, newest: int, named: Sequence[int]) -> history.Series:
    for number in named:
        series.entry(number)
    last = sorted(series.entries)[len(series.entries) - min(newest, len(series.entries)) :]
    wanted = {series.current, *last, *named}
    return replace(series, entries={n: entry for n, entry in series.entries.items() if n in wanted})


def unused_folders(dataset: str, kept: history.Series, oldest: float) -> list[Unused]:
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
        Unused(folder, objects)
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
                    say(f"prune: {error}", logging.WARNING)


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
