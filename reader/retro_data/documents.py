"""The document of a chunk: where it comes from, and the other keys of its record."""

import functools
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_data.arrays import Chunks, Ids, Shard
from retro_data.cache import Cache
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.plan import paths
from retro_ops.storage import store


@dataclass(frozen=True)
class Document:
    """A document of a shard."""

    shard: str
    number: int
    """From 0, within the shard."""
    source: str | None
    """File that it was read from; None if the dataset does not say, as those of the original scripts."""
    line: int | None
    """Line of the file, from 1."""
    record: dict[str, Any]
    """The keys of its record other than the text (``id``, ``url``, ``license``, …)."""


class Documents:
    """Looks up documents in the sidecar files beside the chunks. Each is decompressed once, into the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._opened: dict[str, _Lines | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache, "_opened": {}}

    def of(self, chunks: Chunks, ids: Ids) -> list[Document]:
        """The document of each of ``ids`` in ``chunks``."""
        found: list[Document | None] = [None] * len(ids)
        for shard, places, rows in chunks.groups(ids):
            for place, number in zip(places.tolist(), shard.chunk2seq.map[rows].tolist(), strict=True):
                found[place] = self.document(shard, number)
        return [document for document in found if document]

    def document(self, shard: Shard, number: int) -> Document:
        """Document ``number`` of a shard."""
        lines = self._lines(shard)
        about = lines.line(number) if lines else {}
        return Document(shard.name, number, about.get("source"), about.get("line"), about.get("record", {}))

    def ids_uri(self, shard: Shard) -> str:
        """The array of document ids of a shard."""
        return paths.document_ids_uri(shard.chunks.reader.uri)

    def _lines(self, shard: Shard) -> "_Lines | None":
        uri = paths.documents_uri(shard.chunks.reader.uri)
        if uri not in self._opened:
            self._opened[uri] = self._open(uri, len(shard.seq2chunk)) if store.exists(uri) else None
        return self._opened[uri]

    def _open(self, uri: str, documents: int) -> "_Lines":
        lines = _Lines(
            self._cache.derived(uri, "lines", _decompress), self._cache.derived(uri, "ends.npy", _ends_of_lines)
        )
        if len(lines.ends) != documents:
            raise BadInputError(
                f"{uri} has {len(lines.ends):,} documents, its shard {documents:,}",
                "the file is damaged: repair the dataset",
            )
        return lines


@dataclass(frozen=True)
class _Lines:
    path: str
    ends_path: str

    @functools.cached_property
    def ends(self) -> NDArray[np.int64]:
        ends: NDArray[np.int64] = np.load(self.ends_path, mmap_mode="r")
        return ends

    def line(self, number: int) -> dict[str, Any]:
        start = int(self.ends[number - 1]) if number else 0
        with open(self.path, "rb") as file:
            file.seek(start)
            return dict(json.loads(file.read(int(self.ends[number]) - start)))


def _decompress(path: str, target: str) -> None:
    with _decompressed(path) as lines, open(target, "wb") as file:
        while data := lines.read(2**20):
            file.write(data)


def _ends_of_lines(path: str, target: str) -> None:
    """End of each line in bytes, int64."""
    with _decompressed(path) as lines:
        ends = np.cumsum(np.fromiter((len(line) for line in lines), np.int64), dtype=np.int64)
    with open(target, "wb") as file:
        np.save(file, ends)


def _decompressed(path: str) -> io.BufferedReader:
    try:
        import zstandard
    except ImportError as error:
        raise ConfigurationError("reading documents needs zstandard", "pip install retro-data[text]") from error
    reader = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(open(path, "rb"), closefd=True)  # noqa: SIM115
    return io.BufferedReader(reader, 2**20)
