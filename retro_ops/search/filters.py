"""Filters hits that must not become neighbours: same document, near-duplicates, and text that leaks into validation.

A chunk is compared with a hit token by token; padding never matches. The measures of leakage are those of the RETRO
paper (Borgeaud et al. 2021, "Improving language models by retrieving from trillions of tokens"): the longest common run
of tokens (section 2.6), and the Jaccard similarity of the sets of 13-grams (section 2.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]
"""Unsigned ``[n, chunk_size]``, padded at the end."""

REASONS = ("same_document", "near_duplicate", "shared_run", "shared_ngrams")
"""Reasons to remove a hit; a reason code is the place here plus 1, and 0 keeps the hit."""

SAME_DOCUMENT = 1

NGRAM = 13

PAIRS_PER_STEP = 8192
"""Pairs compared at a time: int64 tokens, hashes and their sorted copies take some 30 MB at 64 tokens."""


@dataclass(frozen=True)
class Limits:
    """A hit above any of these limits is removed; None sets no limit.

    ``overlap``: common tokens as a share of the longer chunk. ``run``: tokens in the longest common run. ``ngrams``:
    Jaccard similarity of the 13-grams.
    """

    overlap: float | None = None
    run: int | None = None
    ngrams: float | None = None

    def __bool__(self) -> bool:
        return self != Limits()


def reasons(limits: Limits, chunks: Tokens, hits: Tokens, pad_id: int) -> NDArray[np.uint8]:
    """Code of the first reason why ``hits[i]`` cannot be a neighbour of ``chunks[i]``: uint8 ``[n]``, 0 if it can."""
    out = np.zeros(len(chunks), np.uint8)
    checks: list[tuple[float | None, Callable[[Tokens, Tokens, int], NDArray[Any]]]] = [
        (limits.overlap, overlap),
        (limits.run, longest_run),
        (limits.ngrams, ngram_similarity),
    ]
    for code, (limit, measure) in enumerate(checks, SAME_DOCUMENT + 1):
        if limit is not None:
            open_rows = np.flatnonzero(out == 0)
            out[open_rows[measure(chunks[open_rows], hits[open_rows], pad_id) > limit]] = code
    return out


def overlap(a: Tokens, b: Tokens, pad_id: int) -> NDArray[np.float64]:
    """Common tokens (each as often as both chunks hold it) as a share of the longer chunk: float64 ``[n]``."""

    def common(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
        longer = np.maximum((x >= 0).sum(axis=1), (y >= 0).sum(axis=1))
        share: NDArray[np.float64] = _in_both(_numbered(x), _numbered(y)) / np.maximum(longer, 1)
        return share

    return _by_steps(common, a, b, pad_id)


def longest_run(a: Tokens, b: Tokens, pad_id: int) -> NDArray[np.float64]:
    """Tokens in the longest common run: float64 ``[n]``.

    The table of the longest common substring, one row at a time for all pairs: a run that ends at (i, j) is one token
    longer than the run that ends at (i - 1, j - 1).
    """

    def run(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
        longest = np.zeros(len(x), np.int16)
        before = np.zeros((len(x), y.shape[1] + 1), np.int16)
        for column in range(x.shape[1]):
            ends = np.zeros_like(before)
            ends[:, 1:] = np.where(x[:, column, None] == y, before[:, :-1] + 1, 0)
            np.maximum(longest, ends.max(axis=1), out=longest)
            before = ends
        return longest.astype(np.float64)

    return _by_steps(run, a, b, pad_id)


def ngram_similarity(a: Tokens, b: Tokens, pad_id: int) -> NDArray[np.float64]:
    """Jaccard similarity of the sets of 13-grams, 0 where there are none: float64 ``[n]``."""

    def jaccard(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
        if x.shape[1] < NGRAM:
            return np.zeros(len(x))
        grams_x, grams_y = _distinct_ngrams(x, -1), _distinct_ngrams(y, -2)
        shared = _in_both(grams_x, grams_y)
        either = (grams_x >= 0).sum(axis=1) + (grams_y >= 0).sum(axis=1) - shared
        similarity: NDArray[np.float64] = shared / np.maximum(either, 1)
        return similarity

    return _by_steps(jaccard, a, b, pad_id)


def _by_steps(
    measure: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]], a: Tokens, b: Tokens, pad_id: int
) -> NDArray[np.float64]:
    out = np.zeros(len(a))
    for start in range(0, len(a), PAIRS_PER_STEP):
        step = slice(start, start + PAIRS_PER_STEP)
        # Padding is negative, with another number on either side, so it never matches.
        out[step] = measure(_without_padding(a[step], pad_id, -1), _without_padding(b[step], pad_id, -2))
    return out


def _without_padding(tokens: Tokens, pad_id: int, mark: int) -> NDArray[np.int64]:
    """Tokens with the padding at the end of each row replaced by ``mark``; the same id within the text stays."""
    wide = tokens.astype(np.int64)
    padding = np.logical_and.accumulate((wide == pad_id)[:, ::-1], axis=1)[:, ::-1]
    wide[padding] = mark
    return wide


def _numbered(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes that are distinct in each row: token and number of its occurrence. Negative entries stay."""
    ordered = np.sort(tokens, axis=1)
    places = np.arange(tokens.shape[1])
    begins = np.pad(ordered[:, 1:] != ordered[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    occurrence = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.where(ordered < 0, ordered, ordered * tokens.shape[1] + occurrence)


def _distinct_ngrams(tokens: NDArray[np.int64], mark: int) -> NDArray[np.int64]:
    """Hashes of the 13-grams of each row, sorted; ``mark`` for those that hold padding, and for repetitions."""
    width = tokens.shape[1] - NGRAM + 1
    codes = np.zeros((len(tokens), width), np.uint64)
    for offset in range(NGRAM):
        # Like 64-bit FNV-1a, one token at a time.
        codes = (codes ^ tokens[:, offset : offset + width].astype(np.uint64)) * np.uint64(0x100000001B3)
        codes ^= codes >> np.uint64(29)
    hashes = (codes >> np.uint64(1)).astype(np.int64)
    hashes[tokens[:, NGRAM - 1 :] < 0] = mark
    hashes.sort(axis=1)
    hashes[:, 1:][hashes[:, 1:] == hashes[:, :-1]] = mark
    return hashes


def _in_both(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Codes of each row of ``a`` that the same row of ``b`` holds, too: int64 ``[n]``.

    Codes are distinct within a row; negative ones do not count.
    """
    together = np.sort(np.concatenate((a, b), axis=1), axis=1)
    count: NDArray[np.int64] = ((together[:, 1:] == together[:, :-1]) & (together[:, 1:] >= 0)).sum(axis=1)
    return count
