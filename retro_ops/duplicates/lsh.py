"""Signed documents -> pairs that are alike, in memory that a budget bounds, whatever their number.

Signatures are read in sequence: once, band by band, for those that share a key; and once for each batch of pairs, which
are then compared number by number. What is held beside is a byte for each document, and 16 for each that has a copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops import memory
from retro_ops.duplicates import document_pairs
from retro_ops.duplicates.document_pairs import Pairs
from retro_ops.duplicates.minhash import PERMUTATIONS
from retro_ops.duplicates.signatures import SignedShards
from retro_ops.errors import BadInputError

KEY_BYTES = 48
"""Of a document while those with one key are found: key, number, order, and copies on the way."""

PAIR_BYTES = 96
"""Of a pair while it is compared: both numbers, their places, what they share, and copies on the way."""

LEAST_AT_ONCE = 4096


@dataclass(frozen=True)
class Alike:
    """``exact``: pairs of equal texts; ``near``: of others whose estimated similarity is at the threshold or above;
    ``compared``: how many pairs shared a key."""

    exact: Pairs
    near: Pairs
    compared: int


def find(signed: SignedShards, threshold: float, budget: int, progress: Callable[[int], None]) -> Alike:
    """Pairs that hold each cluster of like documents together. ``progress`` is told of each band that is done."""
    if signed.total > document_pairs.MOST_DOCUMENTS:
        raise BadInputError(
            f"there are {signed.total:,} documents, more than {document_pairs.MOST_DOCUMENTS:,}", "split the corpus"
        )
    exact, first_of_its_text = _equal(signed, memory.hashed_texts(budget))
    rows = document_pairs.rows_per_band(threshold)
    least = int(np.ceil(threshold * PERMUTATIONS - 1e-9))
    at_once = max(LEAST_AT_ONCE, memory.candidate_pairs(budget) // PAIR_BYTES)
    waiting: list[Pairs] = []
    near, compared = np.zeros(0, np.uint64), 0

    def compare() -> None:
        nonlocal near, compared
        pairs = _not_united(document_pairs.joined(waiting), near)
        waiting.clear()
        compared += len(pairs)
        for start in range(0, len(pairs), at_once):
            part = pairs[start : start + at_once]
            alike = part[shared(signed, part, memory.pair_signatures(budget)) >= least]
            if len(alike):
                near = document_pairs.forest(document_pairs.joined([near, alike]))

    for documents, keys in _bands(signed, first_of_its_text, rows, memory.band_keys(budget), progress):
        waiting.append(document_pairs.candidates(*document_pairs.groups(keys, documents)))
        if sum(map(len, waiting)) >= at_once:
            compare()
    compare()
    return Alike(exact, near, compared)


def _equal(signed: SignedShards, most_bytes: int) -> tuple[Pairs, NDArray[np.bool_]]:
    """Pairs of equal texts, and whether each document is the first of its text: the others need no comparing."""
    found, first = [], np.ones(signed.total, np.bool_)
    parts = _parts(signed.total, most_bytes)
    for part in range(parts):
        documents, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for start, block in signed.contents():
            mine = np.flatnonzero(block % np.uint64(parts) == part)
            documents.append(mine + start)
            keys.append(block[mine])
        found.append(document_pairs.star(*document_pairs.groups(np.concatenate(keys), np.concatenate(documents))))
        first[document_pairs.unpack(found[-1])[1]] = False
    return document_pairs.joined(found), first


def _bands(
    signed: SignedShards, wanted: NDArray[np.bool_], rows: int, most_bytes: int, progress: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """(documents, their keys) of each band, of those ``wanted``; if they are many, of parts of the keys in turn.

    Several bands are read at once where they fit, since each read of a shard costs a request.
    """
    bands, parts = PERMUTATIONS // rows, _parts(signed.total, most_bytes)
    read = max(1, min(bands, most_bytes // max(1, KEY_BYTES * signed.total + 16 * rows * signed.largest)))
    for first in range(0, bands, read):
        together = range(first, min(first + read, bands))
        for part in range(parts):
            keys: list[list[NDArray[np.uint64]]] = [[np.zeros(0, np.uint64)] for _ in together]
            of_band: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in together]
            for start, numbers in signed.numbers(first * rows, (together[-1] + 1) * rows):
                mine = np.flatnonzero(wanted[start : start + numbers.shape[1]])
                for at in range(len(together)):
                    of = document_pairs.band_keys(numbers[at * rows : (at + 1) * rows])[mine]
                    kept = of % np.uint64(parts) == part
                    keys[at].append(of[kept])
                    of_band[at].append(mine[kept] + start)
            for at in range(len(together)):
                yield np.concatenate(of_band[at]), np.concatenate(keys[at])
        progress(len(together))


def _parts(documents: int, most_bytes: int) -> int:
    return max(1, -(-documents * KEY_BYTES // most_bytes))


def _not_united(pairs: Pairs, near: Pairs) -> Pairs:
    """``pairs`` whose documents do not hang together by ``near`` already."""
    if not len(near) or not len(pairs):
        return pairs
    documents, clusters = document_pairs.clusters(near)
    places = [np.searchsorted(documents, of).clip(max=len(documents) - 1) for of in document_pairs.unpack(pairs)]
    known = [documents[at] == of for at, of in zip(places, document_pairs.unpack(pairs), strict=True)]
    united = known[0] & known[1] & (clusters[places[0]] == clusters[places[1]])
    rest: Pairs = pairs[~united]
    return rest


def shared(signed: SignedShards, pairs: Pairs, most_bytes: int) -> NDArray[np.uint16]:
    """Numbers of their signatures that each of ``pairs`` has in common, of PERMUTATIONS."""
    a, b = document_pairs.unpack(pairs)
    documents, places = np.unique(np.concatenate((a, b)), return_inverse=True)
    left, right = places[: len(a)], places[len(a) :]
    counts = np.zeros(len(pairs), np.uint16)
    # The block of a shard is read whole, and four of them ahead.
    each = 4 * (len(documents) + 5 * signed.largest)
    at_once = max(1, min(PERMUTATIONS, most_bytes // max(1, each)))
    for first in range(0, PERMUTATIONS, at_once):
        numbers = signed.numbers_of(documents, first, min(first + at_once, PERMUTATIONS))
        for row in numbers:
            counts += row[left] == row[right]
    return counts
