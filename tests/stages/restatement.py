"""The original pipeline, stated again from docs/formats.md in the plainest way. Slow, and obviously right."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

Array = np.ndarray[Any, Any]


def chunks(tokenizer: Any, texts: Sequence[str], pad_id: int, size: int = 64) -> tuple[Array, Array, Array]:
    rows, seq2chunk, chunk2seq = [], [], []
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        ids += [pad_id] * (-len(ids) % size)
        seq2chunk.append(len(rows))
        for start in range(0, len(ids), size):
            rows.append(ids[start : start + size])
            chunk2seq.append(number)
    return np.array(rows, np.uint16), np.array(seq2chunk, np.int64), np.array(chunk2seq, np.int32)


def neighbours(index_file: str, query: str, query_chunk2seq: str, shards: Sequence[tuple[str, str]], k: int) -> Array:
    """``shards``: (embeddings, chunk2seq) of the index, in id order. nprobe 1, margin 4, filter by path."""
    index = faiss.read_index(index_file)
    _, hits = index.search(np.load(query).astype(np.float32), k + 4)
    owners: dict[int, tuple[str, int]] = {}
    for embeddings, chunk2seq in shards:
        for owner in np.load(chunk2seq):
            owners[len(owners)] = (embeddings, int(owner))
    result = np.full((len(hits), k), -1, np.int64)
    for row, (document, found) in enumerate(zip(np.load(query_chunk2seq), hits, strict=True)):
        kept = [hit for hit in found if hit != -1 and owners[int(hit)] != (query, int(document))][:k]
        result[row, : len(kept)] = kept
    return result
