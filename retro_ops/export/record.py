"""``export.json``: what an exported folder holds, so that an export can continue and a copy can be checked."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from retro_ops.errors import BadInputError
from retro_ops.plan import documents
from retro_ops.plan.digests import digest
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.uris import join

RECORD = "export.json"
FORMAT = 1
SAVE_S = 10.0
"""A kill costs the files of this many seconds."""


class _File(TypedDict):
    bytes: int
    sha256: str
    made_from: str


class _Record(TypedDict):
    layout: str
    dataset: str
    files: dict[str, _File]


class ExportRecord:
    """The files of an exported folder, each with its length, SHA-256 and digest of its inputs."""

    def __init__(self, to: str, layout: str, dataset: str, version: int) -> None:
        self.to = to
        self._about = {"format": FORMAT, "layout": layout, "dataset": dataset, "version": version}
        self._files = self._found()
        self._lock = threading.Lock()
        self._saved = time.monotonic()

    def __len__(self) -> int:
        return len(self._files)

    def ensure(self, name: str, made_from: Sequence[Any], make: Callable[[str], Written]) -> bool:
        """Have ``make`` write the file ``name``, unless it is there, intact and made from the same. Whether it did."""
        target, origin = join(self.to, name), digest(FORMAT, *made_from)
        known = self._files.get(name)
        if known and known["made_from"] == origin and _is_intact(target, known):
            return False
        written = make(target)
        with self._lock:
            self._files[name] = {"bytes": written.bytes, "sha256": written.sha256, "made_from": origin}
            if time.monotonic() - self._saved >= SAVE_S:
                self._save()
        return True

    def save(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        document = {**self._about, "files": dict(sorted(self._files.items()))}
        store.write(join(self.to, RECORD), (json.dumps(document, indent=1) + "\n").encode())

    def _found(self) -> dict[str, dict[str, Any]]:
        uri = join(self.to, RECORD)
        found = store.at(uri).read_tagged(uri)
        if found is None:
            return {}
        document = documents.read(found[0], uri, _Record, "delete it: every file is then copied again")
        for key in ("layout", "dataset"):
            if document.get(key) != self._about[key]:
                raise BadInputError(
                    f"{self.to} holds an export with {key} {document.get(key)!r}, not {self._about[key]!r}",
                    "export to another folder",
                )
        return dict(document["files"])


def _is_intact(uri: str, known: dict[str, Any]) -> bool:
    return store.exists(uri) and store.at(uri).size(uri) == known["bytes"] and store.sha256(uri) == known["sha256"]
