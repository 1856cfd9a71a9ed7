"""faiss indexes: made from a factory string, trained, filled, merged, searched. Metric L2."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

ID_BYTES = 8
LIST_BINS = 30


@dataclass(frozen=True)
class Lists:
    """The lists of an index. ``centroids`` float32 ``[lists, e]``; ``of`` int32 ``[n]``: the list of each vector;
    ``ids`` int64 ``[n]``, ascending: their global ids. ``project``: queries float32 ``[m, d]`` -> ``[m, e]``, for an
    index that transforms its vectors; else None."""

    centroids: NDArray[np.float32]
    of: NDArray[np.int32]
    ids: NDArray[np.int64]
    project: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None


def inner_index(index: Any) -> Any:
    """The index behind transforms such as OPQ or PCA, as its concrete class."""
    return layers_of(index)[-1]


def layers_of(index: Any) -> list[Any]:
    """``index`` and what is behind its transforms, the innermost last, as their concrete classes."""
    layers = [faiss.downcast_index(index)]
    while isinstance(layers[-1], faiss.IndexPreTransform):
        layers.append(faiss.downcast_index(layers[-1].index))
    return layers


def list_count(index: Any) -> int:
    """Inverted lists; 1 for an index without any, which is searched as a whole."""
    inner = inner_index(index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 1


def figures_of(sizes: NDArray[np.int64]) -> dict[str, Any]:
    """How evenly vectors are spread over inverted lists that hold ``sizes``, int64 ``[lists]``.

    ``imbalance``: expected cost of probing a list, as a multiple of that with equal lists (faiss' imbalance factor).
    """
    if len(sizes) == 1:
        return {"lists": 1, "imbalance": 1.0, "empty_lists": 0, "largest_list": int(sizes[0])}
    counts, bins = np.histogram(sizes, LIST_BINS)
    total = float(sizes.sum())
    return {
        "lists": len(sizes),
        "imbalance": float((sizes.astype(np.float64) ** 2).sum() * len(sizes) / (total * total)) if total else 1.0,
        "empty_lists": int((sizes == 0).sum()),
        "largest_list": int(sizes.max()),
        "list_sizes": {"bins": bins.round(2).tolist(), "lists": counts.tolist()},
    }


def list_sizes(index: Any) -> NDArray[np.int64]:
    """Vectors in each inverted list, ``[lists]``; one list for an index without any."""
    inner: Any = inner_index(index)
    if not isinstance(inner, faiss.IndexIVF):
        return np.array([index.ntotal], np.int64)
    lists: Any = inner.invlists
    return np.array([lists.list_size(number) for number in range(inner.nlist)], np.int64)


def list_numbers(index: Any) -> NDArray[np.int64]:
    """Which list each vector of a filled index is in, ``[ntotal]``; all in list 0 where there are none."""
    inner: Any = inner_index(index)
    numbers = np.zeros(index.ntotal, np.int64)
    if isinstance(inner, faiss.IndexIVF):
        lists: Any = inner.invlists
        for number in np.flatnonzero(list_sizes(index)).tolist():
            numbers[faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))] = number
    return numbers


def lists_of(index: Any, ids: NDArray[np.int64], numbers: NDArray[np.int32] | None = None) -> Lists:
    """Which list each vector of a filled index is in; all in one where there are none. ``ids`` ``[n]``: its global ids,
    ascending. ``numbers`` ``[n]``: if they are known, the index need not be filled."""
    inner: Any = inner_index(index)
    of = list_numbers(index).astype(np.int32) if numbers is None else numbers
    if not isinstance(inner, faiss.IndexIVF):
        return Lists(np.zeros((1, index.d), np.float32), of, ids, None)
    project = projection(index) if transforms_of(index) else None
    return Lists(inner.quantizer.reconstruct_n(0, inner.nlist), of, ids, project)


def projection(index: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Queries as the lists see them: through the transforms before the lists."""
    transforms = transforms_of(index)

    def project(queries: NDArray[np.float32]) -> NDArray[np.float32]:
        for transform in transforms:
            queries = transform.apply(np.ascontiguousarray(queries, np.float32))
        return queries

    return project


def set_total(index: Any, total: int) -> None:
    """Let an index say that it holds ``total`` vectors, which were put elsewhere or behind its transforms."""
    for layer in layers_of(index):
        layer.ntotal = total


def transforms_of(index: Any) -> list[Any]:
    """Those before the lists, in order."""
    chains = [layer.chain for layer in layers_of(index)[:-1]]
    return [faiss.downcast_VectorTransform(chain.at(i)) for chain in chains for i in range(chain.size())]


def quantisation_error(index: Any, vectors: NDArray[np.float16]) -> float | None:
    """Mean squared distance of ``vectors`` ``[n, d]`` from what their codes say, in shares of their squared length.

    None for a type whose codes faiss cannot decode.
    """
    if not len(vectors):
        return None
    wide = vectors.astype(np.float32)
    try:
        decoded = index.sa_decode(index.sa_encode(wide))
    except RuntimeError:
        return None
    return float(((decoded - wide) ** 2).sum() / max(float((wide**2).sum()), 1e-12))


def bytes_per_vector(index: Any) -> int:
    """Code of a vector, and its id where there are lists."""
    inner: Any = inner_index(index)
    return int(inner.code_size) + (ID_BYTES if isinstance(inner, faiss.IndexIVF) else 0)


def faiss_message(error: RuntimeError) -> str:
    """faiss prefixes its messages with function, file and line."""
    return re.sub(r"^Error in .*?:\d+: ", "", str(error)).strip()
