"""MinHash signatures of word n-grams, which estimate the Jaccard similarity of two texts."""

import hashlib
import re
from collections.abc import Sequence
from unicodedata import category, normalize

import numpy as np
import rensa
from numpy.typing import NDArray

NGRAM_WORDS = 5
"""Words per n-gram: with fewer, texts on the same subject look alike; with more, a few edits hide a copy."""

PERMUTATIONS = 128
"""Length of a signature: a similarity of 0.8 is estimated with a standard deviation of 0.035."""

SEED = 0
ALGORITHM_VERSION = 2
"""Version of rensa's algorithm. A new one changes the signatures, so `sign-documents` then needs a new code version."""
MARKS = frozenset(
    character
    for character in map(chr, (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)))
    if category(character).startswith("M")
)
"""Combining marks, such as the vowels of Hindi, Thai and Arabic, which are no part of ``\\w``."""

WORD = re.compile(r"\w+")
WORD_WITH_MARKS = re.compile(rf"\w+(?:[{''.join(sorted(MARKS))}]+\w*)*")
"""Many times as slow, and needed for few texts."""


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Signatures ``[texts, PERMUTATIONS]``. Case, punctuation and white space are ignored."""
    if rensa.RMinHash.ALGORITHM_VERSION != ALGORITHM_VERSION:
        raise RuntimeError(f"rensa has algorithm version {rensa.RMinHash.ALGORITHM_VERSION}, not {ALGORITHM_VERSION}")
    if not texts:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    matrix = rensa.RMinHash.digest_matrix_from_token_sets([ngrams(text) for text in texts], PERMUTATIONS, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def ngrams(text: str) -> list[str]:
    """All runs of NGRAM_WORDS words. A shorter text is one n-gram, and a text without words is its own n-gram."""
    words = words_of(text)
    if len(words) <= NGRAM_WORDS:
        return [" ".join(words) or text]
    return [" ".join(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)]


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and ``_`` with their combining marks, in lower case and in Unicode's form NFC."""
    composed = normalize("NFC", text).lower()
    plain = composed.isascii() or MARKS.isdisjoint(composed)
    return (WORD if plain else WORD_WITH_MARKS).findall(composed)


def content_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """64-bit BLAKE2b hash of each unmodified text, uint64 ``[texts]``."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")
