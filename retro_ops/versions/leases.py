"""Leases of readers: a version that a process has open is kept by `prune`.

A lease is an object in `readers/` of the dataset, with the entry of its version. The reader writes it, and only then
looks whether the version is still in `current.json`. `prune` removes the version from `current.json`, and only then
lists the leases. So at least one of the two sees the other, and the entry in the lease is enough to keep the files.
"""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypedDict

from retro_ops.errors import ConfigurationError, RetroError
from retro_ops.plan import documents, paths
from retro_ops.plan.series import Entry, Series
from retro_ops.progress import logger
from retro_ops.storage import store
from retro_ops.storage.base import Stored
from retro_ops.uris import join
from retro_ops.versions import history

LEASE_S = 24 * 3600
"""A lease that was not renewed for this long counts for nothing: its reader was killed."""

RENEW_S = 3600


class _Entry(TypedDict):
    version: int
    path: str
    plan: str


class _Lease(TypedDict):
    entry: _Entry


class Lease:
    """Keeps one version of a dataset from `prune` until ``close``, by a thread that renews the lease."""

    def __init__(self, root: str, dataset: str, entry: Entry) -> None:
        self._entry = entry
        self.uri = join(paths.readers_folder(root, dataset), f"{entry['version']}-{uuid.uuid4().hex}.json")
        self._closed = threading.Event()
        self._write()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def close(self) -> None:
        """Give the version back. Another call does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            store.at(self.uri).delete(self.uri)

    def _renew(self) -> None:
        while not self._closed.wait(RENEW_S):
            try:
                self._write()
                if self._closed.is_set():  # Meanwhile.
                    store.at(self.uri).delete(self.uri)
            except RetroError as error:  # Of 24 tries one must succeed.
                logger.warning("the lease %s was not renewed: %s", self.uri, error)

    def _write(self) -> None:
        about = {"host": socket.gethostname(), "process": os.getpid()}
        about["renewed_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        store.write(self.uri, (json.dumps({**about, "entry": self._entry}, indent=1) + "\n").encode())


def take(root: str, dataset: str, number: int | None) -> tuple[Lease, Series]:
    """A lease of version ``number``, or of the current one, and the series that has it.

    Raises BadInputError if there is no such version, ConfigurationError if this process may not write to the store.
    """
    series = history.read(root, dataset)
    while True:
        entry = series.entry(number)
        try:
            lease = Lease(root, dataset, entry)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"cannot write a lease of version {entry['version']}, so `prune` could remove it while it is read: "
                f"{error}",
                "get permission to write below readers/ of the dataset, or open it with lease=False and keep the "
                f"version with `retro-ops prune --keep-version {entry['version']}`",
            ) from error
        series = history.read(root, dataset)
        if entry["version"] in series.entries:
            return lease, replace(series, current=entry["version"])
        lease.close()  # Pruned meanwhile.


def leased(root: str, dataset: str) -> dict[int, Entry]:
    """The versions that some process has open, by number."""
    oldest = time.time() - LEASE_S
    return {
        entry["version"]: entry
        for stored in _all(root, dataset)
        if stored.modified >= oldest and (entry := _entry(stored.uri))
    }


def sweep(root: str, dataset: str) -> None:
    """Delete the leases of readers that were killed."""
    oldest = time.time() - LEASE_S
    for stored in _all(root, dataset):
        if stored.modified < oldest:
            store.at(stored.uri).delete(stored.uri)


def _all(root: str, dataset: str) -> list[Stored]:
    folder = paths.readers_folder(root, dataset)
    return [stored for stored in store.at(folder).objects(folder) if stored.uri.endswith(".json")]


def _entry(uri: str) -> Entry | None:
    """The version that the lease at ``uri`` keeps; None if the reader has just given it back."""
    found = store.at(uri).read_tagged(uri)
    if found is None:
        return None
    lease: _Lease = documents.read(found[0], uri, _Lease, "delete it, if no reader has the version open")
    return dict(lease["entry"])
