"""Checks a dataset, published or not, against its specs, reports and checksums."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import astuple
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retro_ops import uris
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.specs import DatasetShard, IndexShard, dataset_spec_from_json, index_spec_from_json
from retro_ops.progress import Progress, say
from retro_ops.quality import rules
from retro_ops.storage import read_ahead, store
from retro_ops.storage.npy import NpyReader, open_npy
from retro_ops.uris import parent

BLOCK_ROWS = 16_384

Finding = tuple[str, str]
"""(file, rule that it breaks)"""

Folders = Set[str]
"""Output folders that were validated with the base version."""


def validate(
    specs: Sequence[str], reports: Sequence[str], trusted: Folders, *, thorough: bool = False
) -> dict[str, int]:
    """Check ``specs`` and return counts of what was checked.

    Logs every finding, then raises BadInputError if there are any. Outputs in ``trusted`` folders are checked only for
    presence and length. ``thorough``: read every file, also one that the store compared with a checksum at its upload.
    """
    findings: list[Finding] = []
    checked: dict[str, None] = {}
    sums = _Sums(thorough)
    totals = {"chunks": 0, "neighbour rows": 0, "files": 0}
    for uri in specs:
        findings += _guard(uri, partial(_check_spec, uri, checked, totals, trusted, sums))
    # For specs without a plan, use the reports next to the outputs, if there are any.
    beside = {uris.beside(name, paths.REPORT) for name in checked}
    known = reports or sorted(name for name in beside if store.exists(name))
    findings += _of_each(partial(_check_checksums, required=bool(reports), trusted=trusted, sums=sums), known)
    raise_findings(findings)
    return {**totals, "files": len(checked)}


def validate_shard(
    shard: IndexShard,
    queried: DatasetShard | None,
    index: tuple[Sequence[str], Sequence[int]],
    reports: Sequence[str],
    trusted: Folders,
    *,
    thorough: bool,
) -> dict[str, int]:
    """Check all files of one shard, like ``validate``.

    ``queried``: with its neighbours, unless it has none; ``index``: the chunks and the rows of each shard of the index
    in which they were found.
    """
    sums, chunks, counts = _Sums(thorough), [store.canonical(uri) for uri in index[0]], index[1]
    findings = list(_check_index_shard(shard, trusted, sums))
    if queried and parent(queried.neighbours) not in trusted:
        offsets = dict(zip(chunks, accumulate(counts, initial=0), strict=False))
        findings += _guard(queried.neighbours, partial(_check_shard_neighbours, queried, offsets, counts, sums))
    for uri in reports:
        findings += _check_checksums(uri, required=True, trusted=trusted, sums=sums)
    raise_findings(findings)
    return {"chunks": _rows(shard.chunks) or 0}


class _Sums:
    """SHA-256 of the files that were read from start to end while they were checked, so that none is read twice."""

    def __init__(self, thorough: bool = False) -> None:
        """``thorough``: also read files that the store compared with a checksum at their upload."""
        self._known: dict[str, str] = {}
        self._thorough = thorough

    def blocks(self, array: NpyReader) -> Iterator[tuple[int, NDArray[Any]]]:
        """Blocks of ``array.blocks``; the sum is known after the last block."""
        content = hashlib.sha256(array.header)
        for first, block in array.blocks(BLOCK_ROWS):
            content.update(block.data)
            yield first, block
        self._known[store.canonical(array.uri)] = content.hexdigest()

    def of(self, uri: str) -> str:
        """Reads the file unless its sum is known."""
        return self._known.get(store.canonical(uri)) or store.sha256(uri)

    def has_changed(self, output: Mapping[str, Any]) -> bool:
        """Whether the file differs from what a report says of it.

        Its fingerprint is enough where the store compared the upload with a checksum, unless it was read anyway.
        """
        uri, tag = output["uri"], output.get("tag")
        may_trust = tag and not self._thorough and store.canonical(uri) not in self._known
        if may_trust and store.at(uri).fingerprint(uri) == tag:
            return False
        return self.of(uri) != str(output["sha256"])


def raise_findings(findings: Sequence[Finding]) -> None:
    for file, rule in findings:
        say(f"{file}: {rule}", logging.ERROR, event="finding", file=file, rule=rule)
    if findings:
        raise BadInputError(
            f"problems found: {len(findings)}, the first: {findings[0][0]}: {findings[0][1]}",
            "build the files named above again",
        )


def _check_spec(
    uri: str, checked: dict[str, None], totals: dict[str, int], trusted: Folders, sums: _Sums
) -> Iterator[Finding]:
    text = store.read(uri)
    if text.lstrip().startswith(b"["):
        yield from _check_index_shards(index_spec_from_json(text, uri), checked, totals, trusted, sums)
    else:
        yield from _check_dataset(uri, checked, totals, trusted, sums)


def _check_dataset(
    uri: str, checked: dict[str, None], totals: dict[str, int], trusted: Folders, sums: _Sums
) -> Iterator[Finding]:
    spec = dataset_spec_from_json(store.read(uri), uri)
    shards = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
    yield from _check_index_shards(shards, checked, totals, trusted, sums)
    others = [shard for shard in spec.shards if shard.chunks not in checked]
    yield from _check_other_chunks(others, checked, trusted, sums)
    counts = [size for size in read_ahead.side_by_side(_rows, [s.embeddings for s in shards]) if size is not None]
    if len(counts) != len(shards):
        return
    yield from _guard(spec.faiss_index, partial(_check_index, spec.faiss_index, sum(counts)))
    checked[spec.faiss_index] = None
    offsets = dict(zip((store.canonical(s.chunks) for s in shards), accumulate(counts, initial=0), strict=False))
    to_check = [shard for shard in spec.shards if parent(shard.neighbours) not in trusted]
    yield from _of_each(
        lambda s: _guard(s.neighbours, partial(_check_shard_neighbours, s, offsets, counts, sums)), to_check
    )
    checked |= dict.fromkeys(shard.neighbours for shard in spec.shards)
    totals["neighbour rows"] += sum(
        rows or 0 for rows in read_ahead.side_by_side(_rows, [s.neighbours for s in spec.shards])
    )


def _check_other_chunks(
    shards: Sequence[DatasetShard], checked: dict[str, None], trusted: Folders, sums: _Sums
) -> list[Finding]:
    """Check the chunks of shards that are queried but not indexed."""
    checked |= dict.fromkeys(uri for shard in shards for uri in (shard.chunks, shard.seq2chunk, shard.chunk2seq))
    to_check = [shard for shard in shards if parent(shard.chunks) not in trusted]
    return _of_each(lambda shard: _guard(shard.chunks, partial(_check_chunks, shard, sums)), to_check)


Checked = TypeVar("Checked")


def _of_each(check: Callable[[Checked], Iterator[Finding]], items: Sequence[Checked]) -> list[Finding]:
    """Findings of all ``items``, in order. They are checked in parallel, since most of the time is store latency."""
    found = read_ahead.side_by_side(lambda item: list(check(item)), items, read_ahead.READERS)
    return [finding for of_item in found for finding in of_item]


def _check_index_shards(
    shards: Sequence[IndexShard], checked: dict[str, None], totals: dict[str, int], trusted: Folders, sums: _Sums
) -> Iterator[Finding]:
    new = [shard for shard in shards if shard.embeddings not in checked]
    yield from _of_each(partial(_check_index_shard, trusted=trusted, sums=sums), new)
    totals["chunks"] += sum(rows or 0 for rows in read_ahead.side_by_side(_rows, [shard.chunks for shard in new]))
    checked |= dict.fromkeys(uri for shard in new for uri in astuple(shard))


def _check_index_shard(shard: IndexShard, trusted: Folders, sums: _Sums) -> Iterator[Finding]:
    if parent(shard.chunks) not in trusted:
        yield from _guard(shard.chunks, partial(_check_chunks, shard, sums))
    if parent(shard.embeddings) not in trusted:
        yield from _guard(shard.embeddings, partial(_check_shard_embeddings, shard, sums))


def _guard(file: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of ``check``; an unreadable file is a finding, too."""
    try:
        yield from check()
    except BadInputError as error:
        yield file, str(error).partition("\n")[0]


def _rows(uri: str) -> int | None:

    try:
        return len(open_npy(uri))
    except BadInputError:
        return None


def _check_chunks(shard: IndexShard | DatasetShard, sums: _Sums) -> Iterator[Finding]:

    chunks = open_npy(shard.chunks, ndim=2, kind="u")
    starts, owners = open_npy(shard.seq2chunk, ndim=1, kind="i"), open_npy(shard.chunk2seq, ndim=1, kind="i")
    for array, dtypes in ((chunks, ("uint16", "uint32")), (starts, ("int64",)), (owners, ("int32",))):
        if array.dtype.name not in dtypes:
            yield array.uri, f"dtype is {array.dtype.name}, not {' or '.join(dtypes)}"
    if len(owners) != len(chunks):
        yield shard.chunk2seq, f"has {len(owners):,} rows, but there are {len(chunks):,} chunks"
        return
    previous = -1
    for _, block in sums.blocks(starts):
        yield from ((shard.seq2chunk, rule) for rule in rules.check_seq2chunk(block, previous, len(chunks)))
        previous = int(block[-1])
    previous = -1
    for first, block in sums.blocks(owners):
        begun = starts.rows(previous + 1, int(block[-1]) + 1)
        found = rules.check_chunk2seq(block, first, previous, begun, len(starts))
        yield from ((shard.chunk2seq, rule) for rule in found)
        previous = int(block[-1])
    if previous != len(starts) - 1:
        yield shard.seq2chunk, f"has {len(starts):,} documents, but chunk2seq has {previous + 1:,}"


def _check_shard_embeddings(shard: IndexShard, sums: _Sums) -> Iterator[Finding]:

    embeddings = open_npy(shard.embeddings, ndim=2, kind="f")
    if embeddings.dtype.name != "float16":
        yield shard.embeddings, f"dtype is {embeddings.dtype.name}, not float16"
    if len(embeddings) != _rows(shard.chunks):
        yield shard.embeddings, f"has {len(embeddings):,} rows, but {shard.chunks} has {_rows(shard.chunks) or 0:,}"
    progress = Progress(f"validate {shard.embeddings.rpartition('/')[2]}", len(embeddings), "rows")
    for _, block in sums.blocks(embeddings):
        yield from ((shard.embeddings, rule) for rule in rules.check_embeddings(block))
        progress.advance(len(block))


def _check_index(uri: str, expected: int) -> Iterator[Finding]:
    from retro_ops.index.faiss_files import load_index
    from retro_ops.index.ivf_file import open_lists

    # The list sizes suffice, so a large index is not loaded.
    lists = open_lists(uri)
    total = lists.total if lists else load_index(uri).ntotal
    if total != expected:
        yield uri, f"has {total:,} vectors, but its index spec has {expected:,}"


def _check_shard_neighbours(
    shard: DatasetShard, offsets: Mapping[str, int], counts: Sequence[int], sums: _Sums
) -> Iterator[Finding]:
    """Check the neighbours and distances of a shard.

    ``offsets``: first id of each shard of the index, by the URI of its chunks. ``counts``: rows of these shards.
    """

    neighbours = open_npy(shard.neighbours, ndim=2, kind="i")
    if neighbours.dtype.name != "int64":
        yield shard.neighbours, f"dtype is {neighbours.dtype.name}, not int64"
    if len(neighbours) != _rows(shard.chunks):
        yield shard.neighbours, f"has {len(neighbours):,} rows, but {shard.chunks} has {_rows(shard.chunks) or 0:,}"
        return
    offset = offsets.get(store.canonical(shard.chunks))
    distances = _open_if_there(paths.distances_uri(shard.neighbours))
    distance_blocks = sums.blocks(distances) if distances else iter(())
    owners, starts = open_npy(shard.chunk2seq, ndim=1, kind="i"), open_npy(shard.seq2chunk, ndim=1, kind="i")
    for first, block in sums.blocks(neighbours):
        own_first = own_end = np.zeros(len(block), np.int64)
        if offset is not None:
            documents = owners.rows(first, first + len(block)).astype(np.int64)
            base = int(documents[0])
            if base < 0 or documents[-1] >= len(starts) or (np.diff(documents) >> 1).any():
                return  # chunk2seq is invalid, which its own check reports.
            bounds = np.append(starts.rows(base, int(documents[-1]) + 2), [len(owners)])
            own_first, own_end = bounds[documents - base] + offset, bounds[documents - base + 1] + offset
        found = rules.check_neighbours(block, sum(counts), own_first, own_end)
        yield from ((shard.neighbours, rule) for rule in found)
        if distances is not None:
            _, of_block = next(distance_blocks, (first, distances.rows(0, 0)))
            yield from ((distances.uri, rule) for rule in rules.check_distances(of_block[: len(block)], block))
    next(distance_blocks, None)  # Only at its end is its sum known.


def _open_if_there(uri: str) -> NpyReader | None:

    return open_npy(uri, ndim=2, kind="f") if store.exists(uri) else None


def _check_checksums(uri: str, required: bool, trusted: Folders, sums: _Sums) -> Iterator[Finding]:
    found = report.read(uri)
    if found is None:
        if required:
            yield uri, "does not exist, so its stage is not done"
        return
    if parent(uri) in trusted:
        if lost := report.lost_output(found):
            yield lost
        return
    for output in found["outputs"]:
        try:
            if sums.has_changed(output):
                yield output["uri"], "its content was modified after its stage wrote it (SHA-256 differs)"
        except BadInputError:
            yield output["uri"], "does not exist"
