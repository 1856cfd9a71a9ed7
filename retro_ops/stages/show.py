"""Prints chunks of a dataset with their nearest neighbours as text, and the documents that both are of.

Without --chunk or --document the chunks are drawn at random, by --seed.
"""

import json
import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops import uris
from retro_ops.corpus import line_streams
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS
from retro_ops.plan.specs import DatasetShard, IndexShard
from retro_ops.progress import show
from retro_ops.sizes import some
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy
from retro_ops.tokens.tokenizer import Tokenizer, planned
from retro_ops.versions import history, version_files
from retro_ops.versions.version_files import SplitFiles

ROWS = 3


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, required=False)
    parser.add_argument("--version", type=int, help="number of a version (default: the current one)")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="split to show (default: train)")
    parser.add_argument("--spec", help="dataset spec, instead of --root and --dataset")
    parser.add_argument("--shard", metavar="NAME", help="shard of the chunks (default: any)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--chunk", type=int, metavar="N", help="number of a chunk in --shard, from 0")
    which.add_argument("--document", type=int, metavar="N", help="document in --shard, from 0: its first --rows chunks")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"number of chunks to print (default {ROWS})")


def run(arguments: Namespace, parameters: Parameters) -> None:
    files, tokenizer = _of_spec(arguments, parameters) if arguments.spec else _published(arguments, parameters)
    queried = [Shown(name, shard) for name, shard in zip(files.queried, files.dataset.shards, strict=True)]
    indexed = [Shown(name, shard) for name, shard in zip(files.indexed, files.index, strict=True)]
    offsets = np.cumsum([0, *(len(open_npy(shard.files.chunks)) for shard in indexed)])
    chosen = list(_chosen(arguments, queried, parameters.seed))
    found = [_neighbours(shard, row, indexed, offsets) for shard, row in chosen]
    places = _places([*chosen, *(chunk for neighbours in found for chunk, _ in neighbours if chunk)])
    if not chosen:
        show("There are no chunks to show.")
    for (shard, row), neighbours in zip(chosen, found, strict=True):
        show(f"\n{places[shard, row]}")
        show(_text(tokenizer, shard, row, "  "))
        for rank, (chunk, distance) in enumerate(neighbours, 1):
            if chunk is None:
                show(f"    {rank}. none")
                continue
            at = "" if distance is None else f", squared distance {distance:.3f}"
            show(f"    {rank}. {places[chunk]}{at}")
            show(_text(tokenizer, *chunk, "       "))


@dataclass(frozen=True)
class Shown:
    """A shard under its name."""

    name: str
    files: DatasetShard | IndexShard

    @property
    def neighbours(self) -> str:
        assert isinstance(self.files, DatasetShard)
        return self.files.neighbours

    def places(self, rows: Iterable[int]) -> dict[int, str]:
        """By chunk: ``00_a, chunk 17, document 3 (…/a.jsonl, line 4, id 'x')``, without the latter if it is not stored.

        The documents are compressed as one stream, which is read once, to the last of them.
        """
        chunk2seq, sidecar = open_npy(self.files.chunk2seq), paths.documents_uri(self.files.chunks)
        numbers = {row: int(chunk2seq.rows(row, row + 1)[0]) for row in rows}
        texts = {number: f", document {number:,}" for number in numbers.values()}
        if store.exists(sidecar):
            lines = islice(line_streams.lines([sidecar], line_streams.LONGEST_RECORD), max(texts) + 1)
            stored = {number: line for number, (_, _, line) in enumerate(lines) if number in texts and line}
            if missing := texts.keys() - stored.keys():
                raise BadInputError(f"{sidecar} has no line for document {min(missing)}", "repair the dataset")
            texts = {number: f"{text} ({_origin(json.loads(stored[number]))})" for number, text in texts.items()}
        return {row: f"{self.name}, chunk {row:,}{texts[number]}" for row, number in numbers.items()}


Chunk: TypeAlias = tuple[Shown, int]
"""A row of a shard."""


def _origin(about: dict[str, Any]) -> str:
    identity = f", id {about['record']['id']!r}" if "id" in about["record"] else ""
    return f"{about['source']}, line {about['line']:,}{identity}"


def _places(chunks: Sequence[Chunk]) -> dict[Chunk, str]:
    rows: dict[str, set[int]] = {}
    for shard, row in chunks:  # A shard may have been queried and indexed.
        rows.setdefault(shard.files.chunks, set()).add(row)
    shards = {shard.files.chunks: shard for shard, _ in chunks}
    texts = {of: shard.places(rows[of]) for of, shard in shards.items()}
    return {(shard, row): texts[shard.files.chunks][row] for shard, row in chunks}


def _neighbours(
    shard: Shown, row: int, indexed: Sequence[Shown], offsets: NDArray[np.int64]
) -> list[tuple[Chunk | None, float | None]]:
    """The neighbours of a chunk, None for one that is missing, with their squared distances where they are stored."""
    distances = paths.distances_uri(shard.neighbours)
    ids = open_npy(shard.neighbours).rows(row, row + 1)[0].tolist()
    near = open_npy(distances).rows(row, row + 1)[0].tolist() if store.exists(distances) else [None] * len(ids)
    found: list[tuple[Chunk | None, float | None]] = []
    for neighbour, distance in zip(ids, near, strict=True):
        where = int(np.searchsorted(offsets, neighbour, side="right")) - 1
        found.append(((indexed[where], int(neighbour - offsets[where])) if neighbour >= 0 else None, distance))
    return found


def _chosen(arguments: Namespace, queried: Sequence[Shown], seed: int) -> Iterator[tuple[Shown, int]]:
    """The chunks to show."""
    shards = [shard for shard in queried if arguments.shard in (None, shard.name)]
    if not shards:
        names = some([shard.name for shard in queried])
        raise BadInputError(f"no shard {arguments.shard!r} has neighbours", f"name one of: {names}")
    if arguments.chunk is None and arguments.document is None:
        rng = np.random.default_rng(seed)
        for _ in range(arguments.rows):
            shard = shards[int(rng.integers(len(shards)))]
            if chunks := len(open_npy(shard.files.chunks)):
                yield shard, int(rng.integers(chunks))
        return
    if len(shards) > 1:
        raise BadInputError("chunks and documents are numbered within their shard", "name the shard with --shard")
    (shard,) = shards
    chunks, starts = len(open_npy(shard.files.chunks)), open_npy(shard.files.seq2chunk)
    if arguments.chunk is not None:
        _check_number("chunk", arguments.chunk, chunks, shard)
        yield shard, arguments.chunk
        return
    _check_number("document", arguments.document, len(starts), shard)
    first, *following = starts.rows(arguments.document, min(arguments.document + 2, len(starts))).tolist()
    for row in range(first, min(first + arguments.rows, *following, chunks)):
        yield shard, row


def _check_number(what: str, number: int, count: int, shard: Shown) -> None:
    if not 0 <= number < count:
        raise BadInputError(
            f"shard {shard.name!r} has no {what} {number}", f"it has {count:,} {what}s, numbered from 0"
        )


def _of_spec(arguments: Namespace, parameters: Parameters) -> tuple[SplitFiles, Tokenizer]:
    dataset, index = version_files.read_specs(arguments.spec)
    queried, indexed = ([version_files.name_of(shard.chunks) for shard in of] for of in (dataset.shards, index))
    tokenizer = Tokenizer.load(_tokenizer_name(index, parameters), pad_id=0)
    return SplitFiles(dataset, index, tuple(queried), tuple(indexed)), tokenizer


def _published(arguments: Namespace, parameters: Parameters) -> tuple[SplitFiles, Tokenizer]:
    """The files of a version, and its tokenizer unless ``parameters`` name one."""
    require_flags(arguments, "root", "dataset", remedy="name both, or a dataset spec with --spec")
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    splits = version_files.read(series.folder(arguments.version)).splits
    if arguments.split not in splits:
        raise BadInputError(f"{arguments.dataset} has no split {arguments.split!r}", f"use {' or '.join(splits)}")
    if parameters.tokenizer != Parameters().tokenizer:
        return splits[arguments.split], Tokenizer.load(parameters.tokenizer, pad_id=0)
    plan_uri = series.plan_uri(arguments.version)
    return splits[arguments.split], planned(series.run_uri(arguments.version) or plan_uri, read_plan(plan_uri))


def _text(tokenizer: Tokenizer, shard: Shown, row: int, indent: str) -> str:
    text = " ".join(tokenizer.decode(open_npy(shard.files.chunks).rows(row, row + 1))[0].split())
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=indent)


def _tokenizer_name(shards: Sequence[IndexShard], parameters: Parameters) -> str:
    """The tokenizer given on the command line, else the one in the reports of the chunks, else the default."""
    if parameters.tokenizer != Parameters().tokenizer:
        return parameters.tokenizer
    for shard in shards:
        folder = shard.chunks.rpartition("/")[0]
        for uri in (uris.beside(shard.chunks, paths.REPORT), uris.join(folder, paths.REPORT)):
            done = report.read(uri)
            if done and "tokenizer" in done["details"]:
                return str(done["details"]["tokenizer"])
    if not shards:
        raise BadInputError("the index spec has no shards", "name a dataset spec whose index spec lists shards")
    return parameters.tokenizer
