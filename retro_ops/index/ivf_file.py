"""Reads and merges the inverted lists of index files range by range, for indexes larger than their memory limit.

faiss writes an IVF index in this order: the trained part, the sizes of the lists, then list by list the codes and the
ids. So any list can be read from the file where it lies, and a merged file can be written list by list.
"""

import logging
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index
from retro_ops.index.faiss_index import ID_BYTES
from retro_ops.memory import MemoryLimit
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say
from retro_ops.sizes import parse_bytes
from retro_ops.storage import read_ahead, store
from retro_ops.storage.base import Written

MARK = re.compile(rb"ilar(.{8})(.{8})(full|sprs)(.{8})", re.DOTALL)
"""Header of the sizes: number of lists, bytes of a code, sizes of all lists (``full``) or (number, size) of those that
are not empty (``sprs``), and how many numbers follow."""

FIRST_READ_BYTES = 2**20
MOST_HEAD_BYTES = 2**32

GAP_BYTES = 2**18
"""Smaller gaps between lists are read along, which costs less than another request."""


@dataclass(frozen=True)
class ListFile:
    """An index file.

    ``head``: the trained part; ``sizes`` int64 ``[lists]``: vectors of each list; ``first``: offset of the first list.
    """

    uri: str
    head: bytes
    sizes: NDArray[np.int64]
    code_size: int
    first: int

    @property
    def total(self) -> int:
        return int(self.sizes.sum())

    @property
    def vector_bytes(self) -> int:
        return self.code_size + ID_BYTES

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of each list, and of the end of the last one: int64 ``[lists + 1]``."""
        return self.first + np.concatenate(([0], np.cumsum(self.sizes))) * self.vector_bytes

    def empty(self) -> Any:
        """The index without its vectors."""
        data = self.head + _sizes(np.zeros(len(self.sizes), np.int64), self.code_size)
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        faiss_index.set_total(index, 0)
        return index

    def list_bytes(self, start: int, stop: int) -> int:
        return int(self.offsets[stop] - self.offsets[start])

    def lists(self, start: int, stop: int) -> memoryview:
        """The bytes of lists ``start:stop``, as they are stored."""
        first, length = int(self.offsets[start]), self.list_bytes(start, stop)
        return memoryview(store.at(self.uri).read_range(self.uri, first, length))

    def split(self, block: memoryview, start: int, number: int) -> tuple[memoryview, NDArray[np.int64]]:
        """Codes and ids of list ``number`` in ``block``, which begins with list ``start``."""
        at, size = int(self.offsets[number] - self.offsets[start]), int(self.sizes[number])
        end = at + size * self.code_size
        return block[at:end], np.frombuffer(block, "<i8", size, end)

    def runs(self, wanted: NDArray[np.int64], most_bytes: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of lists to read together, for the ``wanted`` ones (ascending): ``most_bytes``, or one list."""
        start = stop = -1
        for number in wanted.tolist():
            near = stop >= 0 and self.offsets[number] - self.offsets[stop] <= GAP_BYTES
            if near and self.offsets[number + 1] - self.offsets[start] <= most_bytes:
                stop = number + 1
                continue
            if stop >= 0:
                yield start, stop
            start, stop = number, number + 1
        if stop >= 0:
            yield start, stop

    def numbers(self, most_bytes: int) -> NDArray[np.int32]:
        """The list of each vector, by its id: int32 ``[total]``. Reads ``most_bytes`` at a time."""
        found = np.zeros(self.total, np.int32)
        for start, stop in self.runs(np.flatnonzero(self.sizes), most_bytes):
            block = self.lists(start, stop)
            for number in range(start, stop):
                found[self.split(block, start, number)[1]] = number
        return found


def open_lists(uri: str) -> ListFile | None:
    """The index file at ``uri``; None for a type without such lists, which must be loaded whole."""
    size, wanted = store.at(uri).size(uri), FIRST_READ_BYTES
    while True:
        wanted = min(wanted, size)
        data = store.at(uri).read_range(uri, 0, wanted)
        if not data.startswith((b"Iw", b"IxPT")):
            return None
        for found in MARK.finditer(data):
            lists, code_size, count = (struct.unpack("<Q", found[number])[0] for number in (1, 2, 4))
            first = found.end() + 8 * count
            if not (lists > 0 and count <= 2 * lists and first <= size):
                continue
            stored = np.frombuffer(store.at(uri).read_range(uri, found.end(), 8 * count), "<u8").astype(np.int64)
            sizes = stored if found[3] == b"full" else np.zeros(lists, np.int64)
            if found[3] == b"sprs":
                sizes[stored[::2]] = stored[1::2]
            # The trained part may hold the mark by chance, but then the sizes do not add up to the file.
            if len(sizes) == lists and first + int(sizes.sum()) * (code_size + ID_BYTES) == size:
                return ListFile(uri, data[: found.start()], sizes, code_size, first)
        if wanted == size or wanted >= MOST_HEAD_BYTES:
            return None
        wanted *= 4


def memory_limit(parameters: Parameters) -> MemoryLimit:
    """Memory limit of an index: ``search_memory``, else the memory of the machine less ``memory_budget``."""
    requested = parse_bytes(parameters.search_memory) if parameters.search_memory else None
    return memory.index_limit(requested, parse_bytes(parameters.memory_budget))


def open_if_larger_than(limit: MemoryLimit, uris: Sequence[str]) -> list[ListFile] | None:
    """The index files ``uris``, to be read part by part, if together they are larger than ``limit``.

    None if they fit, or if one is of a type that must be loaded whole; the log says which.
    """
    size = sum(store.at(uri).size(uri) for uri in uris)
    if size <= limit.bytes:
        return None
    name = f"{uris[0]}{' and others' if len(uris) > 1 else ''}"
    too_large = f"{name}: {size:,} bytes exceed the limit of {limit.bytes:,} ({limit.why})"
    files = [file for uri in uris if (file := open_lists(uri))]
    if len(files) < len(uris):
        say(f"{too_large}, but this type must be loaded whole", logging.WARNING, event="too_large")
        return None
    say(f"{too_large}, so it is read part by part", event="in_parts")
    return files


def _sizes(sizes: NDArray[np.int64], code_size: int) -> bytes:
    """Sizes as faiss writes them: of all lists, or only of those that are not empty, if these are at most half."""
    filled = np.flatnonzero(sizes)
    full = len(filled) > len(sizes) // 2
    numbers = sizes if full else np.stack((filled, sizes[filled]), axis=1).reshape(-1)
    start = b"ilar" + struct.pack("<QQ", len(sizes), code_size) + (b"full" if full else b"sprs")
    return start + struct.pack("<Q", len(numbers)) + numbers.astype("<u8").tobytes()


def merge(base: ListFile, parts: Sequence[ListFile], uri: str, most_bytes: int) -> Written:
    """Write ``base`` with ``parts`` appended, list by list: the same bytes as faiss writes after a merge in memory.

    ``most_bytes`` are read at a time, and held once more while they are written. BadInputError if the parts do not come
    from one trained index.
    """
    trained = _trained(base)
    for part in parts:
        if _trained(part) != trained:
            raise BadInputError(f"{part.uri} cannot be appended", "build all partial indexes from one trained index")
    files = [base, *parts]
    shifts = np.cumsum([0, *(file.total for file in files)])[:-1].tolist()
    sizes: NDArray[np.int64] = np.add.reduce([file.sizes for file in files])
    index = base.empty()
    faiss_index.set_total(index, int(sizes.sum()))
    empty = _sizes(np.zeros(len(sizes), np.int64), base.code_size)
    head = faiss.serialize_index(index).tobytes()
    whole = ListFile(uri, head.removesuffix(empty), sizes, base.code_size, 0)
    with store.create(uri) as writer:
        writer.write(whole.head)
        writer.write(_sizes(sizes, base.code_size))
        for start, stop in whole.runs(np.arange(len(sizes)), most_bytes):
            blocks = list(
                read_ahead.ahead((file.list_bytes(start, stop), partial(file.lists, start, stop)) for file in files)
            )
            for number in range(start, stop):
                held = [of for of in range(len(files)) if files[of].sizes[number]]
                found = [files[of].split(blocks[of], start, number) for of in held]
                writer.write(b"".join(codes for codes, _ in found))
                writer.write(b"".join((ids + shifts[of]).tobytes() for of, (_, ids) in zip(held, found, strict=True)))
        return writer.close()


def _trained(file: ListFile) -> bytes:
    return bytes(faiss.serialize_index(file.empty()).tobytes())
