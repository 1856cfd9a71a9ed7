"""Texts -> MinHash signatures of their word n-grams, from which the Jaccard similarity of two texts is estimated."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import rensa
from numpy.typing import NDArray

NGRAM_WORDS = 5
"""Words of an n-gram: with fewer, texts on one subject look alike; with more, few changes hide a copy."""

PERMUTATIONS = 128
"""Numbers of a signature: a similarity of 0.8 is estimated with a standard deviation of 0.035."""

SEED = 0
ALGORITHM_VERSION = 2
"""Of rensa's signatures. Another one gives other numbers: `sign-documents` gets another code version with it."""

WORD = re.compile(r"\w+")


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """``[texts, PERMUTATIONS]``. Case, punctuation and white space do not count."""
    if rensa.RMinHash.ALGORITHM_VERSION != ALGORITHM_VERSION:
        raise RuntimeError(f"rensa signs by version {rensa.RMinHash.ALGORITHM_VERSION}, not {ALGORITHM_VERSION}")
    if not texts:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    found = rensa.RMinHash.digest_matrix_from_token_sets([ngrams(text) for text in texts], PERMUTATIONS, SEED)
    return np.array(found.to_rows(), np.uint32)


def ngrams(text: str) -> list[str]:
    """Every run of NGRAM_WORDS words; all words of a text that has fewer; the text itself if it has none."""
    words = WORD.findall(text.lower())
    if len(words) <= NGRAM_WORDS:
        return [" ".join(words) or text]
    return [" ".join(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)]


def content_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b over each text as it is."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")
