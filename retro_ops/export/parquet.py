"""Parquet tables: a row a chunk, and a row a document.

``<split>/<shard>.parquet`` has every shard, also those that were not queried, since neighbours are ids of chunks.
"""

import contextlib
import io
import json
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.corpus import line_streams
from retro_ops.errors import ConfigurationError
from retro_ops.export.record import ExportRecord
from retro_ops.export.version import ExportShard, ExportVersion, provenance
from retro_ops.plan import paths
from retro_ops.progress import Progress
from retro_ops.storage import store
from retro_ops.storage.base import Writer, Written
from retro_ops.storage.npy import open_npy
from retro_ops.tokens.tokenizer import Tokenizer

ROWS = 8192
"""Rows of a row group: some MB in memory."""

DOCUMENTS = 4096
Tables = Iterator[Any]
"""pyarrow tables of one schema: a row group each."""


def export(version: ExportVersion, record: ExportRecord, chosen: Collection[str]) -> int:
    """Write the tables of the shards ``chosen``. Returns the number of files that were written."""
    _pyarrow()
    shards = [shard for shard in version.shards() if shard.name in chosen]
    tokenizer = version.tokenizer()
    progress = Progress("export", sum(len(open_npy(shard.chunks)) for shard in shards), "chunks")
    new = 0
    for shard in shards:
        inputs = [version.sum(uri) for uri in _inputs(shard)]
        chunks = partial(_write, partial(_chunks, version, shard, tokenizer, progress.advance))
        origin = [inputs, shard.name, shard.split, shard.first_id, tokenizer.digest]
        new += record.ensure(f"{shard.split}/{shard.name}.parquet", origin, chunks)
        sidecars = provenance(shard, version)
        if len(sidecars) == 2:
            documents = partial(_write, partial(_documents, version, shard))
            sums = [version.sum(uri) for uri in (*sidecars.values(), shard.seq2chunk)]
            new += record.ensure(f"documents/{shard.name}.parquet", [sums, shard.name], documents)
    progress.close()
    return new


def _inputs(shard: ExportShard) -> list[str]:
    near = [shard.neighbours, paths.distances_uri(shard.neighbours)] if shard.neighbours else []
    return [shard.chunks, shard.chunk2seq, *near]


def _chunks(version: ExportVersion, shard: ExportShard, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Tables:
    pyarrow = _pyarrow()
    first, names = 0, ("tokens", "document", "neighbours", "distances")
    for blocks in zip(*(version.rows(uri, ROWS) for uri in _inputs(shard)), strict=True):
        block = dict(zip(names, blocks, strict=False))
        rows = len(block["tokens"])
        ids = None if shard.first_id is None else np.arange(rows) + shard.first_id + first
        near = {name: _lists(block[name]) if name in block else None for name in ("neighbours", "distances")}
        columns = {
            "id": pyarrow.nulls(rows, pyarrow.int64()) if ids is None else pyarrow.array(ids, pyarrow.int64()),
            "shard": pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [shard.name]),
            "category": pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [shard.category]),
            "document": pyarrow.array(block["document"].astype(np.int32)),
            "text": pyarrow.array(tokenizer.decode(block["tokens"]), pyarrow.string()),
            "tokens": _lists(block["tokens"]),
            **{name: column for name, column in near.items() if column is not None},
        }
        yield pyarrow.table(columns)
        first += rows
        advance(rows)


def _documents(version: ExportVersion, shard: ExportShard) -> Tables:
    pyarrow = _pyarrow()
    sidecars = provenance(shard, version)
    starts = open_npy(shard.seq2chunk).rows(0, len(open_npy(shard.seq2chunk)))
    identities = _identities(version, sidecars["document_ids.npy"], starts)
    lines = line_streams.lines([sidecars["documents.jsonl.zst"]], line_streams.LONGEST_RECORD)
    for first in range(0, len(starts), DOCUMENTS):
        records = [json.loads(line or b"{}") for _, (_, _, line) in zip(range(DOCUMENTS), lines, strict=False)]
        extra = [about["record"] for about in records]
        yield pyarrow.table(
            {
                "shard": pyarrow.DictionaryArray.from_arrays(np.zeros(len(records), np.int32), [shard.name]),
                "document": pyarrow.array(np.arange(first, first + len(records), dtype=np.int32)),
                "document_id": pyarrow.array(identities[first : first + len(records)], pyarrow.uint64()),
                "source": pyarrow.array([about["source"] for about in records], pyarrow.string()),
                "line": pyarrow.array([about["line"] for about in records], pyarrow.int64()),
                "id": pyarrow.array([_word(of, "id") for of in extra], pyarrow.string()),
                "url": pyarrow.array([_word(of, "url") for of in extra], pyarrow.string()),
                "license": pyarrow.array([_word(of, "license", "licence") for of in extra], pyarrow.string()),
                "record": pyarrow.array([json.dumps(of, ensure_ascii=False) for of in extra], pyarrow.string()),
            }
        )


def _identities(version: ExportVersion, uri: str, starts: NDArray[Any]) -> NDArray[np.uint64]:
    """Identity of each document: that of its first chunk."""
    found = np.empty(len(starts), np.uint64)
    first = 0
    for block in version.rows(uri, ROWS * 8):
        inside = slice(*np.searchsorted(starts, (first, first + len(block))))
        found[inside] = block[starts[inside] - first]
        first += len(block)
    return found


def _word(record: dict[str, Any], *keys: str) -> str | None:
    """The value of the first of ``keys`` that the record or its ``meta`` has."""
    meta = record.get("meta")
    for of in (record, meta if isinstance(meta, dict) else {}):
        for key in keys:
            if of.get(key) is not None:
                return str(of[key])
    return None


def _lists(rows: NDArray[Any]) -> Any:
    pyarrow = _pyarrow()
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])


def _write(tables: Callable[[], Tables], target: str) -> Written:
    from pyarrow import parquet

    # The file is closed before the writer is, also after an error, when the writer discards it.
    with store.create(target) as writer, contextlib.ExitStack() as stack:
        file = None
        for table in tables():
            file = file or stack.enter_context(parquet.ParquetWriter(_Sink(writer), table.schema, compression="zstd"))
            file.write_table(table)
        stack.close()
        return writer.close()


class _Sink(io.RawIOBase):
    """A writer of the store as a file."""

    def __init__(self, writer: Writer) -> None:
        self._writer, self._position = writer, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._writer.write(view)
        self._position += len(view)
        return len(view)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigurationError("exporting Parquet needs pyarrow", "pip install 'retro-ops[parquet]'") from error
    return pyarrow
