"""Benchmark texts, and which documents hold a part of one.

A document overlaps with a text if both have the same 13 words in a row, as in the decontamination of GPT-3's training
data (Brown et al. 2020, appendix C): words in lower case, without punctuation. A shorter text must occur as a whole,
and has at least 8 words; still shorter ones occur everywhere and are not compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retro_ops.duplicates.document_pairs import band_keys

NGRAM_WORDS = 13
LEAST_WORDS = 8

BYTES_PER_WORD = 170
"""Memory for each word of the texts while they are indexed: the word itself, its number, the key of its n-gram, their
order, and its share of the vocabulary. Measured with texts of 80 words: 165 at the peak."""


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one length: their keys (ascending, unique, uint64), and the first text that has each (int64)."""

    length: int
    keys: NDArray[np.uint64]
    texts: NDArray[np.int64]


class BenchmarkTexts:
    """Texts, each a list of words, indexed by their n-grams. Texts with fewer than LEAST_WORDS words have none."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self._vocabulary: dict[str, int] = {}
        for text in texts:
            for word in text:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        ids, owner = self._ids(texts)
        lengths = np.array([min(len(text), NGRAM_WORDS) for text in texts], np.int64)
        indexed = [_indexed(ids, owner, lengths, length) for length in range(LEAST_WORDS, NGRAM_WORDS + 1)]
        self._ngrams = [ngrams for ngrams, _ in indexed if len(ngrams.keys)]
        self._beginnings = np.unique(np.concatenate([beginnings for _, beginnings in indexed]))
        """Keys of the first LEAST_WORDS words of all n-grams: few places of a document have one."""

    def overlaps(self, documents: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """``[pairs, 2]``: the number of a document and of a text that it holds a part of, ascending.

        An n-gram that several texts have counts for the first of them.
        """
        ids, owner = self._ids(documents)
        places = _places(_keys(ids, np.arange(max(0, len(ids) - LEAST_WORDS + 1)), LEAST_WORDS), self._beginnings)
        found = [np.zeros((0, 2), np.int64)]
        for ngrams in self._ngrams:
            inside = places[places <= len(ids) - ngrams.length]
            keys = _keys(ids, inside, ngrams.length)
            hits = _places(keys, ngrams.keys)
            found.append(np.stack((owner[inside[hits]], ngrams.texts[ngrams.keys.searchsorted(keys[hits])]), axis=1))
        return np.unique(np.concatenate(found), axis=0)

    def _ids(self, texts: Sequence[Sequence[str]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Number of each word, 0 for words that are in no benchmark and after each text; and the text of each."""
        ids: list[int] = []
        for text in texts:
            ids.extend([self._vocabulary.get(word, 0) for word in text])
            ids.append(0)
        return np.array(ids, np.uint32), np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])


def _indexed(
    ids: NDArray[np.uint32], owner: NDArray[np.int64], lengths: NDArray[np.int64], length: int
) -> tuple[Ngrams, NDArray[np.uint64]]:
    """The n-grams of the texts whose n-grams have ``length`` words, and the keys of their first LEAST_WORDS words."""
    starts = np.flatnonzero(lengths[owner[: max(0, len(ids) - length)]] == length)
    starts = starts[owner[starts + length] == owner[starts]]  # A text ends with a 0.
    keys, first = np.unique(_keys(ids, starts, length), return_index=True)
    starts = starts[first]
    return Ngrams(length, keys, owner[starts]), _keys(ids, starts, LEAST_WORDS)


def _keys(ids: NDArray[np.uint32], starts: NDArray[np.int64], length: int) -> NDArray[np.uint64]:
    """A key for the ``length`` words from each of ``starts`` on."""
    return band_keys(ids[starts + step] for step in range(length))


def _places(keys: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places of the ``keys`` that are in ``known`` (ascending)."""
    if not len(known):
        return np.zeros(0, np.int64)
    return np.flatnonzero(known[np.minimum(known.searchsorted(keys), len(known) - 1)] == keys)
