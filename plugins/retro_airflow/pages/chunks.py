"""Chunks of a build as text, beside their neighbours."""

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from retro_airflow.pages import build as builds
from retro_airflow.pages import security
from retro_airflow.pages.build import Build
from retro_airflow.pages.npy_rows import Rows, open_rows
from retro_airflow.pages.place import Place
from retro_airflow.pages.token_text import Vocabulary, vocabulary
from retro_ops.errors import BadInputError, DamagedError
from retro_ops.plan import documents, paths
from retro_ops.plan.plan import Shard, Split
from retro_ops.quality.shared_words import shared_words
from retro_ops.storage import read_ahead

PAGE_ROWS = 20

MOST_TEXT = 10_000
"""Most characters of a chunk that a page shows and compares."""

NO_TEXT = "The tokenizer of this run is not in the store, so token ids are shown."


@dataclass(frozen=True)
class Chunk:
    """``number`` and ``document`` count from 0 within the shard; ``identity`` is equal for copies of a document."""

    shard: Shard
    number: int
    document: int
    identity: str
    text: str


@dataclass(frozen=True)
class Neighbour:
    chunk: Chunk
    distance: float | None
    """Squared L2 distance; None if the version has no distances."""
    words: Sequence[tuple[str, bool]]
    """Its text in pieces, each with whether the chunk has the same words."""


def find_shard(build: Build, name: str | None) -> Shard:
    """The shard called ``name``, else the first that has neighbours."""
    if name:
        return build.plan.shard(name)
    return next((shard for shard in build.plan.shards if shard.queried), build.plan.shards[0])


def rows_of(build: Build, shard: Shard, kind: str) -> Rows:
    return open_rows(build.place, paths.chunks_files(build.plan, shard.name)[kind])


def first_chunk(build: Build, shard: Shard, document: int) -> int:
    """Number of the first chunk of a document. Raises BadInputError if the shard has no such document."""
    return int(rows_of(build, shard, "seq2chunk").row(document)[0])


def browse(build: Build, shard: Shard, start: int) -> list[Chunk]:
    """Up to PAGE_ROWS chunks of a shard."""
    return _chunks(build, shard, start, start + PAGE_ROWS)


def chunk(build: Build, shard: Shard, number: int) -> Chunk:
    if found := _chunks(build, shard, number, number + 1):
        return found[0]
    raise BadInputError(
        f"shard {shard.name} has no chunk {number:,}", f"it has {rows_of(build, shard, 'chunks').count:,}"
    )


def neighbours(build: Build, of: Chunk) -> list[Neighbour]:
    """Neighbours of a chunk, the nearest first; empty if its shard was not queried."""
    if not of.shard.queried:
        return []
    uri = paths.neighbours_uri(build.plan, of.shard.name)
    ids = open_rows(build.place, uri).row(of.number)
    near_uri = paths.distances_uri(uri)
    near = open_rows(build.place, near_uri).row(of.number) if build.place.exists(near_uri) else [None] * len(ids)
    found = [(number, distance) for number, distance in zip(ids, near, strict=True) if number >= 0]
    places = [_place_of(build, of.shard.split, int(number)) for number, _ in found]
    others = read_ahead.side_by_side(lambda place: chunk(build, *place), places, at_once=8)
    return [
        Neighbour(other, distance, shared_words(of.text, other.text))
        for other, (_, distance) in zip(others, found, strict=True)
    ]


def _chunks(build: Build, shard: Shard, start: int, stop: int) -> list[Chunk]:
    chunks = rows_of(build, shard, "chunks")
    ids, documents = chunks.read(start, stop), rows_of(build, shard, "chunk2seq").read(start, stop)
    identities_uri = paths.document_ids_uri(paths.chunks_files(build.plan, shard.name)["chunks"])
    identities = open_rows(build.place, identities_uri).read(start, stop)
    known = tokens(build)
    return [
        Chunk(
            shard,
            max(0, start) + i,
            document[0],
            f"{identity[0]:016x}",
            security.cut(known.text(row) if known else " ".join(map(str, row)), MOST_TEXT),
        )
        for i, (row, document, identity) in enumerate(zip(ids, documents, identities, strict=True))
    ]


def _place_of(build: Build, split: Split, number: int) -> tuple[Shard, int]:
    """Shard and row of a global chunk id."""
    shards = build.plan.indexed(split)
    ends = _ends(build.place, paths.stage_folder(build.plan, "write-specs"), tuple(shard.name for shard in shards))
    position = bisect.bisect_right(ends, number)
    if position == len(ends):
        raise BadInputError(f"neighbour {number:,} is no chunk of this version", "repair the dataset")
    return shards[position], number - (ends[position - 1] if position else 0)


@functools.lru_cache(32)
def _ends(place: Place, version: str, shards: tuple[str, ...]) -> Sequence[int]:
    """The global id after the last chunk of each shard."""
    counts = builds.shard_counts(place, version)
    return list(itertools.accumulate(counts[name]["chunks"] for name in shards))


def tokens(build: Build) -> Vocabulary | None:
    """The vocabulary of the chunks; None if the run has not stored its tokenizer."""
    if not build.run:
        return None
    return _vocabulary(build.place, paths.tokenizer_uri(build.plan_uri), build.plan.identity.tokenizer_digest)


class _Tokenizer(TypedDict):
    tokenizer: str


@functools.lru_cache(4)
def _vocabulary(place: Place, uri: str, digest: str) -> Vocabulary | None:
    if not place.exists(uri):
        return None
    hint = "run `retro-ops plan` again"
    stored = documents.read(place.read(uri), uri, _Tokenizer, hint)
    try:
        return vocabulary(stored["tokenizer"])
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{uri} is not a tokenizer: {error!r}", hint) from error
