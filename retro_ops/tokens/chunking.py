"""Cuts documents, as token ids, into chunks of a fixed size."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.errors import BadInputError
from retro_ops.tokens.packing import Rows

UINT16_VOCABULARY = 2**16


@dataclass(frozen=True)
class Chunked:
    """Chunks of consecutive documents, both numbered from 0.

    ``chunks``: token dtype ``[n, chunk_size]``; ``seq2chunk``: int64 ``[docs]``, first chunk of each document;
    ``chunk2seq``: int32 ``[n]``, document of each chunk; ``document_ids``: uint64 ``[n]``, identity of the document of
    each chunk, equal for copies of one text.
    """

    chunks: NDArray[Any]
    seq2chunk: NDArray[np.int64]
    chunk2seq: NDArray[np.int32]
    document_ids: NDArray[np.uint64]


def token_dtype(vocabulary_size: int, requested: str) -> np.dtype[Any]:
    """uint16 where every id fits (the format of the original), else uint32.

    ``requested`` is ``auto``, ``uint16`` or ``uint32``. BadInputError for a vocabulary that uint16 cannot hold, instead
    of wrapping its ids.
    """
    if requested == "auto":
        return np.dtype(np.uint16 if vocabulary_size <= UINT16_VOCABULARY else np.uint32)
    if requested not in ("uint16", "uint32"):
        raise BadInputError(f"unknown token dtype {requested!r}", "use auto, uint16 or uint32")
    if requested == "uint16" and vocabulary_size > UINT16_VOCABULARY:
        raise BadInputError(
            f"the tokenizer has {vocabulary_size:,} ids; uint16 holds {UINT16_VOCABULARY:,}",
            "use --token-dtype uint32 (check that your trainer reads it) or another tokenizer",
        )
    return np.dtype(requested)


def chunk_counts(lengths: Sequence[int] | NDArray[np.integer[Any]], chunk_size: int) -> NDArray[np.int64]:
    """Chunks of each document: ``ceil(length / chunk_size)``, but one for an empty document."""
    return np.maximum(1, -(-np.asarray(lengths, np.int64) // chunk_size))


def chunk_documents(documents: Rows, chunk_size: int, pad_id: int, dtype: np.dtype[Any]) -> Chunked:
    """Cut each document (token ids, special tokens included) into chunks, and pad the last one.

    A chunk never holds two documents.
    """
    counts = chunk_counts(documents.lengths, chunk_size)
    ends = np.cumsum(counts)
    starts = ends - counts
    flat = np.full((int(counts.sum()), chunk_size), pad_id, dtype)
    # The padding of the documents before it moves the ids of a document by this much.
    moved = np.repeat(starts * chunk_size - documents.starts[:-1], documents.lengths)
    flat.reshape(-1)[np.arange(len(moved)) + moved] = documents.ids
    numbers = np.arange(len(documents), dtype=np.int32)
    return Chunked(flat, starts, np.repeat(numbers, counts), np.repeat(document_ids(documents), counts))


def document_ids(documents: Rows) -> NDArray[np.uint64]:
    """64 bits of BLAKE2b over the token ids of each document."""
    tokens, bounds = memoryview(documents.ids.astype("<u4").tobytes()), (documents.starts * 4).tolist()
    digests = (hashlib.blake2b(tokens[start:end], digest_size=8).digest() for start, end in itertools.pairwise(bounds))
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
