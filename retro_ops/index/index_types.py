"""Index types: chooses one by the number of vectors, makes it, and checks its requirements."""

import math
import re
from typing import Any

import faiss

from retro_ops.errors import BadInputError
from retro_ops.index.faiss_index import ID_BYTES, faiss_message, inner_index, list_count, transforms_of
from retro_ops.sizes import in_words

AUTO = "auto"

LONGEST_TYPE = 100

FLAT_VECTORS = 20_000
"""Up to this number brute force over whole vectors is cheapest."""

LEAST_POINTS_PER_LIST = 39
"""Below this faiss warns that a list is trained on too few points."""

LISTS_PER_ROOT = 4
"""The number of lists is this multiple of the root of the number of vectors: faiss' guidelines say 4 to 16."""

DIMENSIONS_PER_BYTE = 6

PQ_CENTROIDS = 256
"""Centroids of each part of a vector: together they hold as many numbers as 256 vectors."""

HINT_OF_TYPES = (
    "use a factory string such as Flat, IVF1024,Flat or IVF131072,PQ32; the number of PQ or OPQ divides the dimension"
)


def choose_index_type(
    vectors: int, dimension: int, memory: int | None = None, trained_on: int | None = None
) -> tuple[str, str]:
    """A factory string for an index of ``vectors`` that takes at most ``memory`` bytes, and the reason for it.

    ``trained_on``: vectors that it may be trained on (None: all), which limits the number of lists.

    Exact distances are computed from the stored embeddings, so codes only have to bring the true neighbours among the
    candidates: about one byte for six dimensions is enough (docs/benchmarks.md). If memory forbids that, the next
    smaller number of bytes that divides the dimension is taken. BadInputError if nothing fits.
    """
    sample = vectors if trained_on is None else min(vectors, trained_on)
    flat_fits = memory is None or vectors * dimension * 4 <= memory
    if vectors <= FLAT_VECTORS and flat_fits:
        return "Flat", f"{vectors:,} vectors: brute force is cheapest up to {FLAT_VECTORS:,}"
    if sample < PQ_CENTROIDS <= vectors:
        if flat_fits:
            return "Flat", f"{sample:,} training vectors are too few for codes of {PQ_CENTROIDS:,} centroids"
        raise BadInputError(
            f"{sample:,} training vectors are too few for codes of {PQ_CENTROIDS:,} centroids, and {vectors:,} whole "
            f"vectors do not fit into {memory:,} bytes",
            f"raise --max-training-vectors to {PQ_CENTROIDS:,} or more",
        )
    wanted = max(1.0, min(LISTS_PER_ROOT * math.sqrt(vectors), sample / LEAST_POINTS_PER_LIST))
    lists = 1 << math.floor(math.log2(wanted))
    most = max(1, dimension // DIMENSIONS_PER_BYTE)
    codes = [count for count in range(most, 0, -1) if dimension % count == 0]
    for code in codes:
        size = vectors * (code + ID_BYTES) + (lists + PQ_CENTROIDS) * dimension * 4
        if memory is None or size <= memory:
            limit = "" if code == codes[0] else f" (more do not fit into {memory:,} bytes)"
            return (
                f"IVF{lists},PQ{code}",
                f"{vectors:,} vectors: about {LISTS_PER_ROOT} lists for each root of their number, "
                f"{code} bytes for {dimension} dimensions{limit}, some {in_words(size)} in all",
            )
    raise BadInputError(
        f"no index of {vectors:,} vectors fits into {memory:,} bytes: the smallest takes {size:,}",
        "raise --index-memory, or name an --index-type",
    )


def too_small(index: Any, vectors: int) -> str | None:
    """The reason why ``vectors`` are too few to train ``index``, None if they are enough."""
    inner: Any = inner_index(index)
    lists = list_count(index)
    if lists > 1 and vectors < lists:
        return f"{vectors:,} vectors are too few to train {lists:,} lists"
    if hasattr(inner, "pq") and vectors < inner.pq.ksub:
        return f"{vectors:,} vectors are too few to train codes of {inner.pq.ksub:,} centroids"
    for transform in transforms_of(index):
        if isinstance(transform, faiss.OPQMatrix) and vectors < PQ_CENTROIDS:
            return f"{vectors:,} vectors are too few to train a rotation for codes of {PQ_CENTROIDS:,} centroids"
        if isinstance(transform, faiss.PCAMatrix) and vectors < transform.d_out:
            return f"{vectors:,} vectors are too few to train {transform.d_out:,} principal components"
    return None


def make_index(index_type: str, dimension: int) -> Any:
    """An empty index from a factory string such as ``IVF1024,PQ64``.

    BadInputError for a string that faiss does not know.
    """
    if re.search(r"(?<![\d.])0+(?![\d.])", index_type) or len(index_type) > LONGEST_TYPE:
        raise BadInputError(f"index type {index_type[:LONGEST_TYPE]!r} has a part of size 0", HINT_OF_TYPES)
    try:
        index = faiss.index_factory(dimension, index_type, faiss.METRIC_L2)
    except (RuntimeError, MemoryError) as error:
        raise BadInputError(
            f"faiss cannot make index type {index_type!r} for {dimension} dimensions: {faiss_message(error)}",
            HINT_OF_TYPES,
        ) from error
    for transform in transforms_of(index):
        if isinstance(transform, faiss.OPQMatrix) and transform.d_out % transform.M:
            raise BadInputError(
                f"index type {index_type!r} divides {transform.d_out} dimensions into {transform.M} parts",
                HINT_OF_TYPES,
            )
    return index


def check_mergeable(index: Any, index_type: str) -> None:
    inner = inner_index(index)
    if not isinstance(inner, faiss.IndexIVF | faiss.IndexFlatCodes):
        raise BadInputError(
            f"index type {index_type!r} cannot be filled shard by shard and merged",
            "use an IVF… or Flat type, or `build-faiss-index --spec`, which fills it in one go",
        )
