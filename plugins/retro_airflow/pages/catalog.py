"""Datasets of the configured roots, their versions and their runs, from few small files."""

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retro_airflow.pages.place import Place
from retro_ops.errors import BadInputError
from retro_ops.plan import card, paths
from retro_ops.plan.plan import NAME_PATTERN
from retro_ops.plan.series import Series
from retro_ops.storage import read_ahead, store
from retro_ops.uris import join


@dataclass(frozen=True)
class StoredRun:
    """A run as the store has it. Its name is the run id with unusual characters replaced."""

    name: str
    modified: float
    """Seconds since 1970 of its newest plan."""


@dataclass(frozen=True)
class Dataset:
    """A row of the list of datasets; ``problem`` if its versions cannot be read."""

    place: Place
    series: Series | None
    last_run: StoredRun | None
    problem: str = ""

    @property
    def current(self) -> Mapping[str, Any] | None:
        return self.series.entry() if self.series and self.series.current else None


def datasets(root: str) -> list[Dataset]:
    """All datasets of ``root`` that have a version or a run."""
    names = [name for name in store.at(root).folders(root) if re.fullmatch(NAME_PATTERN, name)]
    found = read_ahead.side_by_side(lambda name: _dataset(Place(root, name)), names)
    return [dataset for dataset in found if dataset.current or dataset.last_run or dataset.problem]


def _dataset(place: Place) -> Dataset:
    try:
        listed = runs(place)
        return Dataset(place, place.series(), listed[0] if listed else None)
    except BadInputError as error:
        return Dataset(place, None, None, str(error))


def runs(place: Place) -> list[StoredRun]:
    """Runs of a dataset that have a plan, newest first."""
    newest: dict[str, float] = {}
    for entry in place.objects(join(place.folder, "runs")):
        if paths.is_plan(entry.uri):
            name = entry.uri.rpartition("/")[0].rpartition("/")[2]
            newest[name] = max(entry.modified, newest.get(name, 0))
    return sorted((StoredRun(*entry) for entry in newest.items()), key=lambda run: -run.modified)


def figures(place: Place, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Figures of a version: those of ``current.json``, else (for older versions) those of its card."""
    return dict(entry["figures"]) if "figures" in entry else _figures_of_card(place, str(entry["path"]))


def figures_of_all(place: Place, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``figures`` of each version, in order; empty where the card cannot be read."""

    def read(entry: Mapping[str, Any]) -> Mapping[str, Any]:
        with contextlib.suppress(BadInputError):
            return figures(place, entry)
        return {}

    return read_ahead.side_by_side(read, entries)


@functools.lru_cache(2048)
def _figures_of_card(place: Place, path: str) -> Mapping[str, Any]:
    uri = paths.card_in(join(place.folder, path), "json")
    return card.figures(card.read_card(place.read(uri), uri))


def recall(found: Mapping[str, Any]) -> float | None:
    """The recall of training rows, which most readers mean by the recall of a version."""
    quality = found.get("quality", {})
    of: Mapping[str, float] = quality.get("train") or next(iter(quality.values()), {})
    return of.get("recall")
