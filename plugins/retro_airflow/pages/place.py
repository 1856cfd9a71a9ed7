"""The place of a dataset, and reads that cannot leave it."""

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.series import Series, series_from_json
from retro_ops.storage import store
from retro_ops.storage.base import Stored, missing
from retro_ops.uris import split_scheme

MOST_BYTES = 64 * 2**20
"""Largest file that a page reads in full: more than any tokenizer, plan or card needs."""

NAME_LENGTH = 200
"""Longest name of a dataset, shard or run in an address."""


@dataclass(frozen=True)
class Place:
    """The folder of one dataset. Its methods raise BadInputError for a location outside of it."""

    root: str
    dataset: str

    @property
    def folder(self) -> str:
        return paths.dataset_folder(self.root, self.dataset)

    def read(self, uri: str) -> bytes:
        """Content of a file of at most MOST_BYTES."""
        data, size = self.head(uri, MOST_BYTES)
        if size > MOST_BYTES:
            raise BadInputError(f"{uri} has {size:,} bytes, too many for a page", "use retro-ops instead")
        return data

    def head(self, uri: str, length: int) -> tuple[bytes, int]:
        """The first ``length`` bytes and the length of the file."""
        return store.at(uri).head(self._checked(uri), length)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        return store.at(uri).read_range(self._checked(uri), start, length)

    def exists(self, uri: str) -> bool:
        return store.exists(self._checked(uri))

    def objects(self, folder: str) -> Sequence[Stored]:
        return store.at(folder).objects(self._checked(folder))

    def folders(self, folder: str) -> Sequence[str]:
        return store.at(folder).folders(self._checked(folder))

    def series(self) -> Series:
        uri = self._checked(paths.current_uri(self.root, self.dataset))
        return series_from_json(store.at(uri).read_tagged(uri), uri)

    def _checked(self, uri: str) -> str:
        inside = f"{self.folder}/"
        path = split_scheme(uri)[1]
        escapes = not uri.startswith(inside) or posixpath.normpath(path) != path
        if "://" not in uri and not escapes:  # A link may lead elsewhere.
            escapes = not f"{os.path.realpath(uri)}/".startswith(f"{os.path.realpath(self.root)}/")
        if escapes:
            raise missing(uri)
        return uri
