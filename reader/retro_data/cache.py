"""Local copies of remote files, named by their checksum and shared by all processes of a host."""

import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan import documents, paths
from retro_ops.storage import store
from retro_ops.uris import join, parent

COPY_BYTES = 8 * 2**20


class _File(TypedDict):
    sha256: str


class _Record(TypedDict):
    files: dict[str, _File]


class Cache:
    """Makes objects of one dataset available as local files.

    A local file is used where it lies. A remote one is copied once, under its SHA-256, which is checked; versions that
    share a file share its copy. Nothing is ever removed: delete the folder, or files in it, when no process uses them.
    """

    def __init__(self, folder: str | None, exported: str | None = None) -> None:
        """``folder``: default ``$RETRO_DATA_CACHE``, else ``~/.cache/retro-data``. ``exported``: an exported folder,
        whose ``export.json`` has the checksums that the reports have elsewhere."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        self.folder = folder or os.environ.get("RETRO_DATA_CACHE") or os.path.join(home, "retro-data")
        self._exported = exported
        self._sums: dict[str, str] = {}
        self._listed: set[str] = set()

    def path(self, uri: str) -> str:
        """A local file with the content of ``uri``. Raises BadInputError if that is not what was written."""
        if "://" not in uri:
            return uri
        key = self._key(uri)

        def copy(target: str) -> None:
            digest = hashlib.sha256()
            with open(target, "wb") as file, store.open_stream(uri) as source:
                while data := source.read(COPY_BYTES):
                    digest.update(data)
                    file.write(data)
            if uri in self._sums and digest.hexdigest() != self._sums[uri]:
                raise BadInputError(f"{uri} is not what was written (SHA-256 differs)", "run `retro-ops validate`")

        return self._made(key, copy)

    def derived(self, uri: str, kind: str, make: Callable[[str, str], None]) -> str:
        """A file made once from ``uri`` by ``make(local file, target)``; ``kind`` names what it holds."""
        return self._made(f"{self._key(uri)}.{kind}", lambda target: make(self.path(uri), target))

    def _made(self, name: str, make: Callable[[str], None]) -> str:
        target = os.path.join(self.folder, name[:2], name)
        if os.path.exists(target):
            return target
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(f"{target}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # The other processes of this host wait for the copy.
            if not os.path.exists(target):
                unfinished = f"{target}.{uuid.uuid4().hex}.unfinished"
                try:
                    make(unfinished)
                    os.replace(unfinished, target)
                finally:
                    Path(unfinished).unlink(missing_ok=True)
        return target

    def _key(self, uri: str) -> str:
        """The SHA-256 of ``uri`` by its report; without one, a hash of the store's fingerprint."""
        folder = parent(uri)
        if uri not in self._sums and folder not in self._listed:
            self._listed.add(folder)
            self._sums |= self._of_export() if self._exported else _of_report(folder)
        found = self._sums.get(uri) or hashlib.sha256(store.at(uri).fingerprint(uri).encode()).hexdigest()
        if not re.fullmatch("[0-9a-f]{64}", found):  # It becomes a file name.
            raise BadInputError(f"{uri} is listed with {found!r} as its SHA-256", "export or repair the dataset")
        return found

    def _of_export(self) -> dict[str, str]:
        assert self._exported
        uri = join(self._exported, "export.json")
        found = store.at(uri).read_tagged(uri)
        files = documents.read(found[0], uri, _Record, "export the version again")["files"] if found else {}
        return {join(self._exported, name): about["sha256"] for name, about in files.items()}


def _of_report(folder: str) -> dict[str, str]:
    done = report.read(join(folder, paths.REPORT))
    return {output["uri"]: output["sha256"] for output in done["outputs"]} if done else {}
