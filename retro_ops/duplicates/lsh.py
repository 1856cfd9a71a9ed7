"""Finds pairs of similar documents from their signatures, within a memory budget, for any number of documents.

1. Equal texts are paired by content hash; only the first of each takes part in the steps below.
2. Signatures are read band by band; documents whose keys agree in a band become candidate pairs.
3. Once enough candidates wait, they are compared row by row (``shared``); pairs that are already in one cluster are
   skipped. Each batch reads the signatures once.
Besides the budget this needs one byte per document and 16 bytes per document that has a copy.
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
"""Memory for each document while documents are grouped by key: key, number, order and temporary copies."""

PAIR_BYTES = 96
"""Memory for each pair while it is compared: both numbers, their positions, the count and temporary copies."""

LEAST_AT_ONCE = 4096


@dataclass(frozen=True)
class Alike:
    """Pairs of similar documents."""

    exact: Pairs
    """Pairs of equal texts."""
    near: Pairs
    """Pairs of different texts whose estimated similarity is at or above the threshold."""
    compared: int
    """Number of candidate pairs that were compared."""


def find(signed: SignedShards, threshold: float, budget: int, progress: Callable[[int], None]) -> Alike:
    """Pairs that connect each cluster of similar documents.

    ``progress`` is called with the number of bands done. Raises BadInputError for more than MOST_DOCUMENTS documents.
    """
    if signed.total > document_pairs.MOST_DOCUMENTS:
        raise BadInputError(
            f"the corpus has {signed.total:,} documents, more than the limit of {document_pairs.MOST_DOCUMENTS:,}",
            "split the corpus into several datasets",
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
    """Pairs of equal texts, and whether each document is the first with its text; the others need no comparison."""
    pairs, first = [], np.ones(signed.total, np.bool_)
    parts = _parts(signed.total, most_bytes)
    for part in range(parts):
        documents, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
        for start, block in signed.contents():
            mine = np.flatnonzero(block % np.uint64(parts) == part)
            documents.append(mine + start)
            keys.append(block[mine])
        pairs.append(document_pairs.star(*document_pairs.groups(np.concatenate(keys), np.concatenate(documents))))
        first[document_pairs.unpack(pairs[-1])[1]] = False
    return document_pairs.joined(pairs), first


def _bands(
    signed: SignedShards, wanted: NDArray[np.bool_], rows: int, most_bytes: int, progress: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """(documents, their keys) for each band, for the ``wanted`` documents only.

    Large corpora yield a band in several parts, split by key. Several bands are read at once if they fit in ``budget``,
    since each read of a shard costs a request.
    """
    bands, parts = PERMUTATIONS // rows, _parts(signed.total, most_bytes)
    read = max(1, min(bands, most_bytes // max(1, KEY_BYTES * signed.total + 16 * rows * signed.largest)))
    for first in range(0, bands, read):
        together = range(first, min(first + read, bands))
        for part in range(parts):
            keys: list[list[NDArray[np.uint64]]] = [[np.zeros(0, np.uint64)] for _ in together]
            members: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in together]
            for start, numbers in signed.numbers(first * rows, (together[-1] + 1) * rows):
                mine = np.flatnonzero(wanted[start : start + numbers.shape[1]])
                for at in range(len(together)):
                    band = document_pairs.band_keys(numbers[at * rows : (at + 1) * rows])[mine]
                    kept = band % np.uint64(parts) == part
                    keys[at].append(band[kept])
                    members[at].append(mine[kept] + start)
            for at in range(len(together)):
                yield np.concatenate(members[at]), np.concatenate(keys[at])
        progress(len(together))


def _parts(documents: int, most_bytes: int) -> int:
    """Number of parts of the key space, so that the keys of one part fit in ``most_bytes``."""
    return max(1, -(-documents * KEY_BYTES // most_bytes))


def _not_united(pairs: Pairs, near: Pairs) -> Pairs:
    """``pairs`` whose documents are not yet in one cluster of ``near``."""
    if not len(near) or not len(pairs):
        return pairs
    documents, clusters = document_pairs.clusters(near)
    sides = document_pairs.unpack(pairs)
    places = [np.searchsorted(documents, side).clip(max=len(documents) - 1) for side in sides]
    known = [documents[place] == side for place, side in zip(places, sides, strict=True)]
    united = known[0] & known[1] & (clusters[places[0]] == clusters[places[1]])
    rest: Pairs = pairs[~united]
    return rest


def shared(signed: SignedShards, pairs: Pairs, most_bytes: int) -> NDArray[np.uint16]:
    """Number of PERMUTATIONS signature rows that the two documents of each pair share, uint16 ``[pairs]``."""
    a, b = document_pairs.unpack(pairs)
    documents, places = np.unique(np.concatenate((a, b)), return_inverse=True)
    left, right = places[: len(a)], places[len(a) :]
    counts = np.zeros(len(pairs), np.uint16)
    # A block of a shard is read as a whole, and four blocks are read ahead.
    each = 4 * (len(documents) + 5 * signed.largest)
    at_once = max(1, min(PERMUTATIONS, most_bytes // max(1, each)))
    for first in range(0, PERMUTATIONS, at_once):
        numbers = signed.numbers_of(documents, first, min(first + at_once, PERMUTATIONS))
        for row in numbers:
            counts += row[left] == row[right]
    return counts
