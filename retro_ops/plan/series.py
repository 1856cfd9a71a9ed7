"""The published versions of a dataset: what ``current.json`` holds.

It has the fields of the current version, which are enough for most readers, and the other versions under ``history``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from retro_ops.errors import BadInputError
from retro_ops.plan import documents
from retro_ops.uris import parent, resolve

Entry = Mapping[str, Any]
"""One version as JSON: ``version`` (its number), ``path``, ``plan``, ``specs``, ``card``, ``counts``, ``figures``, …"""


class _Entry(TypedDict):
    version: int
    path: str
    plan: str
    published_at: str
    counts: dict[str, int]
    specs: NotRequired[dict[str, str]]
    card: NotRequired[str | None]
    as_of: NotRequired[str | None]
    run: NotRequired[str]
    skipped: NotRequired[list[str]]


class _Document(_Entry):
    last: NotRequired[int]
    history: NotRequired[list[_Entry]]


@dataclass(frozen=True)
class Series:
    """All published versions of a dataset."""

    uri: str
    """Location of ``current.json``, even if it does not exist."""
    tag: str | None
    """Tag for compare-and-swap; None if ``current.json`` does not exist."""
    current: int
    """Number of the current version; 0 if nothing was published."""
    entries: Mapping[int, Entry]
    """Versions by number, ascending."""
    last: int = 0
    """Highest version number ever used."""

    def entry(self, number: int | None = None) -> Entry:
        """Version ``number``, or the current one. Raises BadInputError if it does not exist."""
        wanted = self.current if number is None else number
        if not self.entries:
            raise BadInputError(
                f"{self.uri} does not exist: dataset {self.dataset!r} was never published",
                "check --root and --dataset",
            )
        if wanted not in self.entries:
            raise BadInputError(
                f"{self.dataset} has no version {wanted}", f"its versions are {', '.join(map(str, self.entries))}"
            )
        return self.entries[wanted]

    @property
    def dataset(self) -> str:
        return parent(self.uri).rpartition("/")[2]

    def folder(self, number: int | None = None) -> str:
        return resolve(self.entry(number)["path"], self.uri)

    def plan_uri(self, number: int | None = None) -> str:
        return resolve(self.entry(number)["plan"], self.uri)

    def run_uri(self, number: int | None = None) -> str | None:
        """The plan of the run that made the version, beside which `plan` stored the tokenizer. None if an earlier
        release published it."""
        entry = self.entry(number)
        return resolve(entry["run"], self.uri) if "run" in entry else None

    def number_of(self, folder: str) -> int | None:
        """Number of the version in ``folder``; None if there is none."""
        return next((number for number in self.entries if self.folder(number) == folder), None)


def series_from_json(found: tuple[bytes, str] | None, uri: str) -> Series:
    """The series at ``uri``. ``found``: text and tag, as ``Store.read_tagged`` returns them; None: never published."""
    if found is None:
        return Series(uri, None, 0, {})
    hint = "restore it from a backup; the versions themselves lie in versions/"
    current = documents.read(found[0], uri, _Document, hint)
    last = current.pop("last", 0)
    entries = sorted([*current.pop("history", ()), current], key=lambda entry: int(entry["version"]))
    by_number = {entry["version"]: entry for entry in entries}
    if entries[0]["version"] < 1 or len(by_number) < len(entries):
        raise BadInputError(f"{uri} is damaged: its versions are {[entry['version'] for entry in entries]}", hint)
    return Series(uri, found[1], current["version"], by_number, max(last, *by_number))


def series_to_json(series: Series) -> str:
    others = [entry for number, entry in series.entries.items() if number != series.current]
    return json.dumps({**series.entry(), "last": series.last, "history": others}, indent=1) + "\n"
