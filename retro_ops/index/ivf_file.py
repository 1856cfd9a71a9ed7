"""Reads and merges the inverted lists of index files range by range, for indexes larger than their memory limit.

faiss writes an IVF index in this order: the trained part, the sizes of the lists, then list by list the codes and the
ids. So any list can be read from the file where it lies, and a merged file can be written list by list.
"""

import logging
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.errors import BadInputError
from retro_ops.execution import budgets
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

SMALL_BYTES = 2**28
"""A trained part of this size fits into memory, so it is damaged if faiss wants more than there is."""

PIECES_AT_ONCE = 2**16
"""Pieces of lists, one for each file, that are joined at a time: Python holds some 600 bytes for each."""

GAP_BYTES = 2**18
"""Smaller gaps between lists are read along, which costs less than another request."""


@dataclass(frozen=True)
class ListFile:
    """An index file.

    ``trained``: the index without its vectors, as faiss serialises it; ``sizes`` int64 ``[lists]``: vectors of each
    list; ``first``: offset of the first list.
    """

    uri: str
    trained: bytes = field(repr=False)
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

    def empty(self, *, search: bool = True) -> Any:
        """The index without its vectors. ``search``: whether it will search, for which faiss computes a table."""
        return faiss.deserialize_index(np.frombuffer(self.trained, np.uint8), table_flags(search))

    def list_bytes(self, start: int, stop: int) -> int:
        return int(self.offsets[stop] - self.offsets[start])

    def lists(self, start: int, stop: int, shift: int = 0) -> memoryview:
        """The bytes of lists ``start:stop`` as they are stored, with ``shift`` added to the ids."""
        first, length = int(self.offsets[start]), self.list_bytes(start, stop)
        block = memoryview(store.at(self.uri).read_range(self.uri, first, length))
        if not shift:
            return block
        words, is_id = self._words(block, start, stop)
        shifted = words.copy()
        shifted[is_id] = (words[is_id].view("<i8") + shift).view(words.dtype)
        return shifted.view(np.uint8).data

    def ids(self, block: memoryview, start: int, stop: int) -> NDArray[np.int64]:
        """Ids of the vectors of lists ``start:stop``, list by list; ``block``: the bytes of these lists."""
        words, is_id = self._words(block, start, stop)
        return words[is_id].view("<i8")

    def _words(self, block: memoryview, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """``block`` in words that divide codes and ids, and whether each word belongs to an id."""
        word = math.gcd(self.code_size, ID_BYTES)
        sizes = self.sizes[start:stop]
        lengths = np.stack((sizes * self.code_size, sizes * ID_BYTES), axis=1).reshape(-1) // word
        is_id = np.repeat(np.tile([False, True], len(sizes)), lengths)
        return np.frombuffer(block, f"<u{word}"), is_id

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
            numbers = np.repeat(np.arange(start, stop, dtype=np.int32), self.sizes[start:stop])
            found[self.ids(self.lists(start, stop), start, stop)] = numbers
        return found


def open_lists(uri: str, like: ListFile | None = None) -> ListFile | None:
    """The index file at ``uri``; None for a type without such lists, which must be loaded whole.

    ``like``: another file. If both have the same trained part, it is in memory once.
    """
    size, wanted = store.at(uri).size(uri), max(FIRST_READ_BYTES, like.first if like else 0)
    while True:
        wanted = min(wanted, size)
        data = store.at(uri).read_range(uri, 0, wanted)
        if not data.startswith((b"Iw", b"IxPT")):
            return None
        for found in MARK.finditer(data):
            lists, code_size, count = (struct.unpack("<Q", found[number])[0] for number in (1, 2, 4))
            first = found.end() + 8 * count
            if not (0 < lists <= size and count <= 2 * lists and first <= size):
                continue
            stored = np.frombuffer(store.at(uri).read_range(uri, found.end(), 8 * count), "<u8").astype(np.int64)
            sizes = stored if found[3] == b"full" else np.zeros(lists, np.int64)
            if found[3] == b"sprs":
                if count % 2 or not ((stored[::2] >= 0) & (stored[::2] < lists)).all():
                    continue
                sizes[stored[::2]] = stored[1::2]
            # The trained part may hold the mark by chance, but then the sizes do not add up to the file.
            if len(sizes) == lists and first + int(sizes.sum()) * (code_size + ID_BYTES) == size:
                trained = _trained(data[: found.start()] + _sizes(np.zeros(lists, np.int64), code_size), uri)
                shared = like is not None and like.trained == trained
                return ListFile(uri, like.trained if like and shared else trained, sizes, code_size, first)
        if wanted == size or wanted >= MOST_HEAD_BYTES:
            return None
        wanted *= 4


def memory_limit(parameters: Parameters) -> MemoryLimit:
    """Memory limit of an index: ``search_memory``, else the memory of the machine less ``memory_budget``."""
    requested = parse_bytes(parameters.search_memory) if parameters.search_memory else None
    return memory.index_limit(requested, budgets.budget(parameters))


def open_if_larger_than(limit: MemoryLimit, uris: Sequence[str]) -> list[ListFile] | None:
    """The index files ``uris``, to be read part by part, if together they are larger than ``limit``.

    None if they fit, or if one is of a type that must be loaded whole; the log says which.
    """
    size = sum(store.at(uri).size(uri) for uri in uris)
    if size <= limit.bytes:
        return None
    name = f"{uris[0]}{' and others' if len(uris) > 1 else ''}"
    too_large = f"{name}: {size:,} bytes exceed the limit of {limit.bytes:,} ({limit.why})"
    first = open_lists(uris[0])
    # Twice: as read, and without vectors.
    head = 2 * first.first if first else 0
    others = read_ahead.ahead((head, partial(open_lists, uri, first)) for uri in uris[1:])
    files = [file for file in (first, *others) if file]
    if len(files) < len(uris):
        say(f"{too_large}, but this type must be loaded whole", logging.WARNING, event="too_large")
        return None
    say(f"{too_large}, so it is read part by part", event="in_parts")
    return files


def table_flags(search: bool) -> int:
    """Flags for reading an index: faiss' table for product codes takes up to 2 GiB, and only a search needs it."""
    return 0 if search else int(faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE)


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
    for part in parts:
        if part.trained != base.trained:
            raise BadInputError(f"{part.uri} cannot be appended", "build all partial indexes from one trained index")
    files = [base, *parts]
    shifts = np.cumsum([0, *(file.total for file in files)])[:-1].tolist()
    sizes: NDArray[np.int64] = np.add.reduce([file.sizes for file in files])
    index = base.empty(search=False)
    faiss_index.set_total(index, int(sizes.sum()))
    empty = _sizes(np.zeros(len(sizes), np.int64), base.code_size)
    head = faiss.serialize_index(index).tobytes().removesuffix(empty) + _sizes(sizes, base.code_size)
    whole = ListFile(uri, base.trained, sizes, base.code_size, len(head))
    with store.create(uri, int(whole.offsets[-1])) as writer:
        writer.write(head)
        for start, stop in whole.runs(np.arange(len(sizes)), most_bytes):
            reads = (
                (file.list_bytes(start, stop), partial(file.lists, start, stop, shift))
                for file, shift in zip(files, shifts, strict=True)
            )
            blocks = list(read_ahead.ahead(reads))
            for joined in _joined(files, blocks, start, stop):
                writer.write(joined)
        return writer.close()


def _joined(files: Sequence[ListFile], blocks: Sequence[memoryview], start: int, stop: int) -> Iterator[bytes]:
    """Lists ``start:stop`` of all ``files``: of each list first the codes of all files, then the ids. ``blocks``: the
    bytes of these lists, by file."""
    step = max(1, PIECES_AT_ONCE // len(files))
    for first in range(start, stop, step):
        lists = slice(first, min(first + step, stop))
        sizes = np.stack([file.sizes[lists] for file in files], axis=1)
        codes = np.stack([file.offsets[lists] - file.offsets[start] for file in files], axis=1)
        ids = codes + sizes * files[0].code_size
        starts = np.stack((codes, ids), axis=1)  # [lists, 2, files]
        ends = np.stack((ids, ids + sizes * ID_BYTES), axis=1)
        filled = starts < ends
        pieces = zip(np.nonzero(filled)[2].tolist(), starts[filled].tolist(), ends[filled].tolist(), strict=True)
        yield b"".join([blocks[of][begin:end] for of, begin, end in pieces])


def _trained(index: bytes, uri: str) -> bytes:
    """The serialised ``index`` of ``uri`` without its number of vectors. BadInputError if faiss cannot read it."""
    try:
        empty = faiss.deserialize_index(np.frombuffer(index, np.uint8), table_flags(search=False))
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) and len(index) > SMALL_BYTES:
            raise
        raise BadInputError(f"{uri} is not a faiss index: {error}", "it is damaged: build it again") from error
    faiss_index.set_total(empty, 0)
    return bytes(faiss.serialize_index(empty).tobytes())
