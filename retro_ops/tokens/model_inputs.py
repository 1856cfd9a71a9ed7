"""Turns chunks into inputs of a model; runs in worker processes, so it imports neither torch nor transformers."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retro_ops.tokens import packing
from retro_ops.tokens.encoders import Encoding, exact, fastest

Chunks: TypeAlias = NDArray[Any]
"""Token ids ``[n, chunk_size]``."""


@dataclass(frozen=True)
class Decoding:
    """A tokenizer for decoding. ``cleans_up``: spaces before punctuation are removed afterwards."""

    json: str
    cleans_up: bool


@functools.cache
def texts(decoding: Decoding) -> Callable[[Chunks], list[str]]:
    """The function that decodes chunks, without special tokens and padding. Cached in each process."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(decoding.json)

    def decode(chunks: Chunks) -> list[str]:
        found: list[str] = tokenizer.decode_batch(chunks.tolist(), skip_special_tokens=True)
        return [clean_up(text) for text in found] if decoding.cleans_up else found

    return decode


@functools.cache
def reencoder(decoding: Decoding, encoding: Encoding, prompt: str, fast: bool) -> Callable[[Chunks], packing.Rows]:
    """The function that encodes ``prompt`` and the text of each chunk as a sentence-transformer would. Cached in each
    process.

    ``fast``: with a faster package; the function raises DisagreementError once that proves wrong.
    """
    decode, encode = texts(decoding), fastest(encoding)[0] if fast else exact(encoding)
    if not prompt:
        return lambda chunks: packing.filled(encode(decode(chunks)))
    return lambda chunks: packing.filled(encode([prompt + text for text in decode(chunks)]))


def wrapper(encoding: Encoding, prompt: str) -> Callable[[Chunks], packing.Rows]:
    """The function that takes the ids of chunks as they are, for chunks of the model's own tokenizer.

    Special ids are dropped, as decoding would, and the special ids that the tokenizer puts around a text are added,
    with those of ``prompt`` after the first ones. Spaces at the end of a prompt belong to the word that follows.
    """
    from tokenizers import Tokenizer

    assert encoding.longest
    longest = encoding.longest
    tokenizer = Tokenizer.from_str(encoding.json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    special = [number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    dropped = np.zeros(max(tokenizer.get_vocab_size(with_added_tokens=True), *special, 0) + 1, np.bool_)
    dropped[special] = True

    before = whole[:start] + tokenizer.encode(prompt.rstrip(), add_special_tokens=False).ids
    after = whole[start + len(plain) :]

    def wrap(chunks: Chunks) -> packing.Rows:
        return packing.filled(packing.wrap(chunks, dropped, before, after, longest))

    return wrap


def clean_up(text: str) -> str:
    """``text`` as transformers returns it for tokenizers with ``clean_up_tokenization_spaces``."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text
