"""Inspects faiss indexes: their layers, transforms, lists and codes. The metric is L2."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

ID_BYTES = 8
LIST_BINS = 30


@dataclass(frozen=True)
class Lists:
    """The lists of an index, and which of them holds each vector."""

    centroids: NDArray[np.float32]
    """``[lists, e]``"""
    of: NDArray[np.int32]
    """``[n]``: the list of each vector."""
    ids: NDArray[np.int64]
    """``[n]``, ascending: global id of each vector."""
    project: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None
    """Queries float32 ``[m, d]`` -> ``[m, e]``; None for an index without transforms."""


def inner_index(index: Any) -> Any:
    """The index behind transforms such as OPQ or PCA, as its concrete class."""
    return layers_of(index)[-1]


def layers_of(index: Any) -> list[Any]:
    """``index`` and the indexes behind its transforms, the innermost last, as their concrete classes."""
    layers = [faiss.downcast_index(index)]
    while isinstance(layers[-1], faiss.IndexPreTransform):
        layers.append(faiss.downcast_index(layers[-1].index))
    return layers


def list_count(index: Any) -> int:
    """Number of inverted lists; 1 for an index without lists, which is searched as a whole."""
    inner = inner_index(index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 1


def figures_of(sizes: NDArray[np.int64]) -> dict[str, Any]:
    """How evenly vectors are spread over inverted lists of ``sizes`` vectors, int64 ``[lists]``.

    ``imbalance``: expected cost of probing a list, as a multiple of the cost with equal lists (faiss' imbalance
    factor).
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
    """Vectors in each inverted list, int64 ``[lists]``; an index without lists counts as one."""
    inner: Any = inner_index(index)
    if not isinstance(inner, faiss.IndexIVF):
        return np.array([index.ntotal], np.int64)
    lists: Any = inner.invlists
    return np.array([lists.list_size(number) for number in range(inner.nlist)], np.int64)


def list_numbers(index: Any) -> NDArray[np.int64]:
    """The list of each vector of a filled index, int64 ``[ntotal]``; 0 for an index without lists."""
    inner: Any = inner_index(index)
    numbers = np.zeros(index.ntotal, np.int64)
    if isinstance(inner, faiss.IndexIVF):
        lists: Any = inner.invlists
        for number in np.flatnonzero(list_sizes(index)).tolist():
            numbers[faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))] = number
    return numbers


def lists_of(index: Any, ids: NDArray[np.int64], numbers: NDArray[np.int32] | None = None) -> Lists:
    """Lists of a filled index; an index without lists counts as one.

    ``ids`` ``[n]``: global ids of its vectors, ascending. ``numbers`` ``[n]``: the list of each vector, for an index
    that is not filled.
    """
    inner: Any = inner_index(index)
    of = list_numbers(index).astype(np.int32) if numbers is None else numbers
    if not isinstance(inner, faiss.IndexIVF):
        return Lists(np.zeros((1, index.d), np.float32), of, ids, None)
    project = projection(index) if transforms_of(index) else None
    return Lists(inner.quantizer.reconstruct_n(0, inner.nlist), of, ids, project)


def projection(index: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A function that applies the transforms before the lists to queries, ``[m, d]`` -> ``[m, e]``."""

    def project(queries: NDArray[np.float32]) -> NDArray[np.float32]:
        # faiss frees the transforms with ``index``, so it is the index that this function holds on to.
        for transform in transforms_of(index):
            queries = transform.apply(np.ascontiguousarray(queries, np.float32))
        return queries

    return project


def set_total(index: Any, total: int) -> None:
    """Set the number of vectors of all layers, for vectors that were added behind the transforms or lie in a file."""
    for layer in layers_of(index):
        layer.ntotal = total


def clear_unused(index: Any) -> None:
    """Zero the places behind the last vector, in types that store vectors in blocks (``…fs``).

    faiss leaves there what the memory held before, so equal indexes would have different files, and a published file
    could hold anything of this process.
    """
    for packer, block, places in unused(index):
        for place in places:
            packer.pack_1(np.zeros(packer.code_size, np.uint8), place, block)


def unused(index: Any) -> Iterator[tuple[Any, NDArray[np.uint8], range]]:
    """The last block of each list that has unused places: its packer, its bytes ``[1, size]``, and the places."""
    types: Any = faiss  # Its stubs lack some.
    inner = inner_index(index)
    lists = getattr(inner, "invlists", None)
    lists = None if lists is None else faiss.downcast_InvertedLists(lists)
    if isinstance(inner, types.IndexFastScan):
        packer, stored = inner.get_CodePacker(), [(inner.codes.get(), inner.ntotal)]
    elif isinstance(lists, types.BlockInvertedLists) and lists.packer is not None:
        packer = lists.packer
        stored = [(lists.get_codes(number), lists.list_size(number)) for number in range(lists.nlist)]
    else:
        return
    for codes, vectors in stored:
        blocks, used = divmod(vectors, packer.nvec)
        if used:
            last = faiss.rev_swig_ptr(codes, (blocks + 1) * packer.block_size)[blocks * packer.block_size :]
            yield packer, last.reshape(1, -1), range(used, packer.nvec)


def transforms_of(index: Any) -> list[Any]:
    """Transforms before the lists, in order."""
    chains = [layer.chain for layer in layers_of(index)[:-1]]
    return [faiss.downcast_VectorTransform(chain.at(i)) for chain in chains for i in range(chain.size())]


def quantisation_error(index: Any, vectors: NDArray[np.float16]) -> float | None:
    """Mean squared distance of ``vectors`` ``[n, d]`` from their decoded codes, as a share of their squared length.

    None for a type whose codes faiss cannot decode.
    """
    if not len(vectors):
        return None
    wide = vectors.astype(np.float32)
    if not _can_decode(inner_index(index)):
        return None
    try:
        decoded = index.sa_decode(index.sa_encode(wide))
    except RuntimeError:
        return None
    return float(((decoded - wide) ** 2).sum() / max(float((wide**2).sum()), 1e-12))


def _can_decode(inner: Any) -> bool:
    """Whether faiss can decode codes of ``inner``.

    A fast-scan index that was read from a file lacks its quantiser, without which faiss would end the process.
    """
    scanned: Any = inner
    if isinstance(inner, faiss.IndexIVFPQFastScan):
        scanned.fine_quantizer = scanned.pq
        return True
    return not isinstance(inner, faiss.IndexIVFAdditiveQuantizerFastScan)


def bytes_per_vector(index: Any) -> int:
    """Bytes of the code of a vector, and of its id if the index has lists."""
    inner: Any = inner_index(index)
    return int(inner.code_size) + (ID_BYTES if isinstance(inner, faiss.IndexIVF) else 0)


def faiss_message(error: Exception) -> str:
    """Message of a faiss ``error`` without the prefix of function, file and line."""
    return re.sub(r"^Error in .*?:\d+: ", "", str(error)).strip()
