"""Checkpoints: finished blocks of an unfinished output, so that a stage that was killed resumes after them.

A block is one object, which the store commits whole or not at all: an .npz of parts in the order in which the stage
made them, with the rows (or records) it covers and the counts of the stage up to its end, followed by its SHA-256.
Two runs of the same stage may overwrite each other's blocks. Each block is valid by itself and names its first row, so
blocks that do not continue the previous one are ignored; only time is lost.
"""

import hashlib
import io
import itertools
import json
import logging
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.progress import say
from retro_ops.storage import store

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMMIT_SECONDS = 10.0
COMMIT_BYTES = 12 * 2**20
"""A block is committed after this much time or output, whichever comes first. It is smaller than a part of an upload,
so it takes one request, and a kill leaves no incomplete upload behind."""

WRITTEN_AT_ONCE = 4
"""Blocks that fill up before their time are written in the background, this many at once; a kill costs at most these
and the one that is being filled."""

ABOUT = "about"
SEAL_BYTES = hashlib.sha256().digest_size

Part: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Arrays of some rows, by name."""


class Unfinished:
    """The blocks of one output. ``folder`` None: nothing is kept, so nothing is resumed.

    First take all ``parts`` to their end; then ``add`` the parts that follow, from row ``end`` on.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._left_behind = folder is not None  # Until ``parts`` has looked.
        self._number = 0
        self._writer = ThreadPoolExecutor(WRITTEN_AT_ONCE)
        self._writing: deque[Future[None]] = deque()
        self.resumed_at = self.end = 0
        self.state: dict[str, Any] = {}
        """Counts of the stage up to ``end``, as the blocks that were found hold them."""
        self._begin()

    def parts(self) -> Iterator[Part]:
        """Parts of the intact blocks that follow one another, from row 0 on."""
        if self._folder is None:
            return
        there = set(store.at(self._folder).list(self._folder))
        self._left_behind = bool(there)
        while (uri := paths.block_uri(self._folder, self._number)) in there:
            block = _read(uri)
            if block is None or block.first != self.end:
                break  # It and what comes after it will be overwritten.
            yield from block.parts()
            self.end, self.state = block.end, block.state
            self._number += 1
        self.resumed_at = self.end
        if self._number:
            say(f"resumes at {self.end:,}, after {self._number:,} finished blocks", event="resumed", done=self.end)
        self._begin()

    def details(self) -> dict[str, int]:
        """For the report: rows or records that an earlier run had finished, if any."""
        return {"resumed_at": self.resumed_at} if self.resumed_at else {}

    def add(self, part: Part, end: int) -> None:
        """Add the next ``part``, which ends before row ``end``."""
        if self._folder is not None:
            self._write({f"{self._parts}/{name}.npy": rows for name, rows in part.items()})
        self._parts += 1
        self.end = end

    def commit_when_due(self, state: Mapping[str, Any] | None = None) -> None:
        """Commit what was added since the last block, if it is enough. ``state``: counts up to ``end``, as JSON."""
        in_time = time.monotonic() - self._began >= COMMIT_SECONDS
        if self._folder is None or not self._parts or not (in_time or self._buffer.tell() >= COMMIT_BYTES):
            return
        about = json.dumps({"first": self._first, "end": self.end, "state": dict(state or {})}).encode()
        with zipfile.ZipFile(self._buffer, "a") as block:
            block.writestr(ABOUT, about)
        self._left_behind = True
        self._wait(WRITTEN_AT_ONCE - 1)
        uri = paths.block_uri(self._folder, self._number)
        self._writing.append(self._writer.submit(_write_block, uri, self._buffer))
        if in_time:
            self._wait(0)
        self._number += 1
        self._begin()

    def _wait(self, at_most: int) -> None:
        """Wait until at most this many blocks are being written."""
        while len(self._writing) > at_most:
            self._writing.popleft().result()

    def restart(self) -> None:
        """Discard all blocks and begin with row 0."""
        self.delete()
        self._number = self.resumed_at = self.end = 0
        self.state = {}
        self._begin()

    def delete(self) -> None:
        """Delete all blocks, once the output is complete without them."""
        if self._folder is not None and self._left_behind:
            wait(self._writing)
            for failed in filter(None, (write.exception() for write in self._writing)):
                say(f"a block that is no longer needed was not written: {failed}", logging.WARNING, event="block")
            self._writing.clear()
            store.at(self._folder).delete_folder(self._folder)

    def _begin(self) -> None:
        self._first, self._parts, self._began = self.end, 0, time.monotonic()
        # Parts are serialised as they come, so memory holds one copy of them.
        self._buffer = io.BytesIO()

    def _write(self, members: Part) -> None:
        from numpy.lib import format as npy_format

        # Closed after every part, so that a stage that fails between two leaves no open archive behind.
        with zipfile.ZipFile(self._buffer, "a") as block:
            for name, rows in members.items():
                with block.open(name, "w") as member:
                    npy_format.write_array(member, rows, allow_pickle=False)


def _write_block(uri: str, buffer: io.BytesIO) -> None:
    with store.create(uri) as writer, buffer.getbuffer() as data:
        writer.write(data)
        writer.write(hashlib.sha256(data).digest())
        writer.close()


@dataclass(frozen=True)
class _Block:
    first: int
    end: int
    state: dict[str, Any]
    contents: "Mapping[str, NDArray[Any]]"
    """Arrays by part number and name, in order; read on demand."""

    def parts(self) -> Iterator[Part]:
        names = (name for name in self.contents if name != ABOUT)
        for number, of_part in itertools.groupby(names, key=lambda name: name.partition("/")[0]):
            yield {name.removeprefix(f"{number}/"): self.contents[name] for name in of_part}


def _read(uri: str) -> _Block | None:
    """The block at ``uri``; None if it is damaged, or gone since it was listed."""
    import numpy as np

    try:
        data = memoryview(store.read(uri))
    except BadInputError:
        return None
    if hashlib.sha256(data[:-SEAL_BYTES]).digest() != data[-SEAL_BYTES:]:
        return None
    contents = np.load(io.BytesIO(data[:-SEAL_BYTES]), allow_pickle=False)
    about = json.loads(contents[ABOUT])
    return _Block(about["first"], about["end"], about["state"], contents)
