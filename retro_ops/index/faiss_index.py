"""faiss indexes: made from a factory string, trained, filled, merged, searched. Metric L2."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device
from retro_ops.compute.fp16_scores import on, prepare
from retro_ops.errors import BadInputError
from retro_ops.index import gpu_ivf
from retro_ops.search.gpu_search import Lists

DEFAULT_TRAINING_VECTORS_PER_LIST = 256
"""More do not help: faiss itself samples down to 256 points a centroid."""

WITHOUT_LISTS_TRAINING_VECTORS = 65_536

AUTO = "auto"

FLAT_VECTORS = 20_000
"""Up to here brute force over whole vectors costs less than lists would save."""

LEAST_POINTS_PER_LIST = 39
"""Below this faiss warns that a list is trained on too few points."""

LISTS_PER_ROOT = 4
"""Lists for each root of the number of vectors: faiss' own guidelines say 4 to 16."""

DIMENSIONS_PER_BYTE = 6

ID_BYTES = 8
PQ_CENTROIDS = 256
"""Of each part of a vector: together as many numbers as 256 vectors."""

HINT_OF_TYPES = (
    "use a factory string such as Flat, IVF1024,Flat or IVF131072,PQ32; the number of PQ or OPQ divides the dimension"
)

PCA_POINTS_PER_DIMENSION = 1000
"""More do not help: faiss itself samples down to them."""


def choose_index_type(
    vectors: int, dimension: int, memory: int | None = None, trained_on: int | None = None
) -> tuple[str, str]:
    """A factory string for so many vectors that takes ``memory`` bytes at most, and why.

    ``trained_on``: how many of them it may be trained on (None: all), which limits the number of lists.

    Exact distances are computed from the stored embeddings whatever the codes, so the codes only have to bring the true
    neighbours among the candidates: about one byte for six dimensions does (docs/benchmarks.md). Where memory forbids
    that, the next smaller number of bytes that divides the dimension. BadInputError when nothing fits.
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
                f"{code} bytes for {dimension} dimensions{limit}, some {size / 2**20:,.0f} MiB in all",
            )
    raise BadInputError(
        f"no index of {vectors:,} vectors fits into {memory:,} bytes: the smallest takes {size:,}",
        "raise --index-memory, or name an --index-type",
    )


def too_small(index: Any, vectors: int) -> str | None:
    """Why ``vectors`` are too few to train ``index``; None when they are not."""
    inner: Any = inner_index(index)
    lists = list_count(index)
    if lists > 1 and vectors < lists:
        return f"{vectors:,} vectors are too few to train {lists:,} lists"
    if hasattr(inner, "pq") and vectors < inner.pq.ksub:
        return f"{vectors:,} vectors are too few to train codes of {inner.pq.ksub:,} centroids"
    for transform in _transforms(index):
        if isinstance(transform, faiss.OPQMatrix) and vectors < PQ_CENTROIDS:
            return f"{vectors:,} vectors are too few to train a rotation for codes of {PQ_CENTROIDS:,} centroids"
        if isinstance(transform, faiss.PCAMatrix) and vectors < transform.d_out:
            return f"{vectors:,} vectors are too few to train {transform.d_out:,} principal components"
    return None


def make_index(index_type: str, dimension: int) -> Any:
    """An empty index from a factory string such as ``IVF1024,PQ64``.

    Raises BadInputError for a string that faiss does not know, and for an index that cannot be built
    shard by shard and merged (only IVF and flat codes can).
    """
    try:
        index = faiss.index_factory(dimension, index_type, faiss.METRIC_L2)
    except RuntimeError as error:
        raise BadInputError(
            f"faiss cannot make index type {index_type!r} for {dimension} dimensions: {_reason(error)}",
            HINT_OF_TYPES,
        ) from error
    for transform in _transforms(index):
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


def inner_index(index: Any) -> Any:
    """The index behind transforms such as OPQ or PCA, as its concrete class."""
    return _layers(index)[-1]


def _layers(index: Any) -> list[Any]:
    """``index`` and what is behind its transforms, the innermost last, as their concrete classes."""
    layers = [faiss.downcast_index(index)]
    while isinstance(layers[-1], faiss.IndexPreTransform):
        layers.append(faiss.downcast_index(layers[-1].index))
    return layers


def list_count(index: Any) -> int:
    """Inverted lists; 1 for an index without any, which is searched as a whole."""
    inner = inner_index(index)
    return int(inner.nlist) if isinstance(inner, faiss.IndexIVF) else 1


LIST_BINS = 30


def list_figures(index: Any) -> dict[str, Any]:
    """How evenly the vectors are spread over the inverted lists.

    ``imbalance``: expected cost of probing a list, as a multiple of that with equal lists (faiss' imbalance factor).
    """
    return figures_of(list_sizes(index))


def figures_of(sizes: NDArray[np.int64]) -> dict[str, Any]:
    """Likewise of lists of these ``sizes``."""
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
    project = projection(index) if _transforms(index) else None
    return Lists(inner.quantizer.reconstruct_n(0, inner.nlist), of, ids, project)


def projection(index: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Queries as the lists see them: through the transforms before the lists."""
    transforms = _transforms(index)

    def project(queries: NDArray[np.float32]) -> NDArray[np.float32]:
        for transform in transforms:
            queries = transform.apply(np.ascontiguousarray(queries, np.float32))
        return queries

    return project


def set_total(index: Any, total: int) -> None:
    """Let an index say that it holds ``total`` vectors, which were put elsewhere or behind its transforms."""
    for layer in _layers(index):
        layer.ntotal = total


def _transforms(index: Any) -> list[Any]:
    """Those before the lists, in order."""
    chains = [layer.chain for layer in _layers(index)[:-1]]
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


def training_vectors(index: Any) -> int:
    """How many vectors training takes when the caller does not say."""
    lists = list_count(index)
    return lists * DEFAULT_TRAINING_VECTORS_PER_LIST if lists > 1 else WITHOUT_LISTS_TRAINING_VECTORS


def on_tensor_cores(index: Any) -> bool:
    """Whether core/tensor_ivf.py can train and fill it: plain lists of whole vectors or of product codes of bytes,
    behind linear transforms that lengthen no vector, or none."""
    inner: Any = inner_index(index)
    if type(inner) not in (faiss.IndexIVFFlat, faiss.IndexIVFPQ) or not all(map(_only_turns, _transforms(index))):
        return False
    plain = isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexFlat) and inner.metric_type == faiss.METRIC_L2
    return plain and (type(inner) is faiss.IndexIVFFlat or (inner.pq.nbits == 8 and bool(inner.by_residual)))


def _only_turns(transform: Any) -> bool:
    whitens = isinstance(transform, faiss.PCAMatrix) and transform.eigen_power != 0
    return isinstance(transform, faiss.OPQMatrix | faiss.PCAMatrix | faiss.RandomRotationMatrix) and not whitens


def train(index: Any, vectors: NDArray[Any], seed: int, index_type: str, device: Device) -> None:
    """Train in place on ``[n, d]``. The result is on the CPU and has no vectors."""
    reason = too_small(index, len(vectors))
    if device.chosen == "cuda" and reason is None and on_tensor_cores(index):
        train_on(prepare(device), index, vectors, seed)
    else:
        _train_by_faiss(index, vectors.astype(np.float32, copy=False), seed, index_type, device)


def train_on(device: str, index: Any, vectors: NDArray[Any], seed: int) -> None:
    """``index``: one for which ``on_tensor_cores`` holds. ``device``: torch's name."""
    inner = inner_index(index)
    codes = isinstance(inner, faiss.IndexIVFPQ)
    iterations = inner.cp.niter, inner.pq.cp.niter if codes else 0
    points = on(device, vectors).half()
    if not bool(points.isfinite().all()):
        raise BadInputError("there are embeddings that hold numbers which are not finite", "embed their shards again")
    for transform in _transforms(index):
        _train_transform(transform, points, seed)
        points = _linear([transform], device).halves(points)
    trained = gpu_ivf.train(points, inner.nlist, inner.pq.M if codes else None, iterations, seed)
    inner.quantizer.add(trained.centroids[0].cpu().numpy())
    if trained.codebooks is not None:
        faiss.copy_array_to_vector(trained.codebooks.cpu().numpy().reshape(-1), inner.pq.centroids)
        inner.precompute_table()
    for layer in _layers(index):
        layer.is_trained = True


def _train_transform(transform: Any, points: Any, seed: int) -> None:
    """In place, on half ``points`` ``[n, d_in]`` on a device."""
    if isinstance(transform, faiss.OPQMatrix):
        iterations = transform.niter, transform.niter_pq_0, transform.niter_pq
        most = transform.max_train_points
        turn = gpu_ivf.rotation(points, transform.d_out, transform.M, most, iterations, seed)
        faiss.copy_array_to_vector(turn.cpu().numpy().reshape(-1), transform.A)
        transform.is_trained = transform.is_orthonormal = True
    elif not transform.is_trained:
        some = gpu_ivf.sampled(points, PCA_POINTS_PER_DIMENSION * transform.d_in, seed)
        transform.train(some.float().cpu().numpy())


def _linear(transforms: list[Any], device: str) -> gpu_ivf.Linear:
    """All in a row, as one. They are trained."""
    matrix: NDArray[np.float64] = np.eye(transforms[0].d_in)
    bias: NDArray[np.float64] = np.zeros(transforms[0].d_in)
    for transform in transforms:
        of = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in).T.astype(np.float64)
        matrix, bias = matrix @ of, bias @ of
        if transform.have_bias:
            bias = bias + faiss.vector_to_array(transform.b)
    return gpu_ivf.Linear(*(on(device, part.astype(np.float32)) for part in (matrix, bias)))


def _train_by_faiss(index: Any, vectors: NDArray[np.float32], seed: int, index_type: str, device: Device) -> None:
    inner = inner_index(index)
    on_gpu = None
    rotations = [transform for transform in _transforms(index) if isinstance(transform, faiss.OPQMatrix)]
    quantisers = [faiss.ProductQuantizer(of.d_out, of.M, 8) for of in rotations]
    for transform, quantiser in zip(rotations, quantisers, strict=True):
        transform.pq = quantiser
    for clustering in _clusterings(inner):
        clustering.seed = seed
    for clustering in _clusterings(inner) + [quantiser.cp for quantiser in quantisers]:
        # faiss warns once per subspace and iteration; the stage says it once, in its own words.
        clustering.min_points_per_centroid = 1
    if hasattr(inner, "do_polysemous_training"):
        # It permutes the codes for a Hamming filter that nothing here uses, and costs most of the time.
        inner.do_polysemous_training = False
    if isinstance(inner, faiss.IndexIVF) and device.chosen == "cuda":
        on_gpu = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inner.d))  # must outlive train()
        inner.clustering_index = on_gpu
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise BadInputError(
            f"{len(vectors):,} vectors are too few to train index type {index_type!r}: {_reason(error)}",
            "choose fewer lists (about a thirtieth of the vectors), Flat instead of PQ, or a larger corpus",
        ) from error
    if on_gpu is not None:
        inner.clustering_index = None
    for transform in rotations:
        transform.pq = None


def _clusterings(inner: Any) -> list[Any]:
    lists = [inner.cp] if isinstance(inner, faiss.IndexIVF) else []
    return lists + ([inner.pq.cp] if hasattr(inner, "pq") else [])


def fill(index: Any, blocks: Iterable[NDArray[np.float16]], on_block: Callable[[int], None], device: Device) -> None:
    """Add float16 ``[n, d]`` blocks in order, so that ids follow the order of rows."""
    if device.chosen == "cuda" and on_tensor_cores(index):
        fill_on(prepare(device), index, blocks, on_block)
        return
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
        on_block(len(block))


def fill_on(device: str, index: Any, blocks: Iterable[NDArray[np.float16]], on_block: Callable[[int], None]) -> None:
    """Likewise, codes computed by torch on ``device``: those of a block while faiss adds those of the one before."""
    inner = inner_index(index)

    def add(codes: NDArray[np.uint8]) -> None:
        inner.add_sa_codes(codes)
        set_total(index, inner.ntotal)
        on_block(len(codes))

    coding = coder(index, device)
    before = None
    for block in blocks:
        coming = gpu_ivf.to_host(coding.encode(on(device, block)))
        if before:
            add(before())
        before = coming
    if before:
        add(before())


def coder(index: Any, device: str) -> gpu_ivf.Coder:
    """What codes vectors as ``index`` does, on ``device`` (torch's name)."""
    inner, transforms = inner_index(index), _transforms(index)
    centroids = on(device, inner.quantizer.reconstruct_n(0, inner.nlist)[None])
    codebooks = None
    if isinstance(inner, faiss.IndexIVFPQ):
        shape = (inner.pq.M, inner.pq.ksub, inner.pq.dsub)
        codebooks = on(device, faiss.vector_to_array(inner.pq.centroids).reshape(shape))
    return gpu_ivf.Coder(centroids, codebooks, _linear(transforms, device) if transforms else None)


def merge(target: Any, part: Any, name: str) -> None:
    """Append ``part`` (called ``name`` in errors) to ``target``; its ids move up by what ``target`` holds.

    ``part`` is empty afterwards. Raises BadInputError when the two do not come from one trained index.
    """
    has_lists = isinstance(inner_index(target), faiss.IndexIVF)
    try:
        target.check_compatible_for_merge(part)
        target.merge_from(part, target.ntotal if has_lists else 0)
    except RuntimeError as error:
        raise BadInputError(
            f"{name} cannot be appended: {_reason(error)}", "build all partial indexes from one trained index"
        ) from error


def searcher(
    index: Any, device: Device, shard_over_gpus: bool
) -> Callable[[NDArray[np.float32], int, int], tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """A search function (queries, width, nprobe) over ``index`` on ``device``."""
    has_lists = list_count(index) > 1  # asked of the index on the CPU: a GPU index has other classes
    if device.chosen == "cuda":
        options = faiss.GpuMultipleClonerOptions()
        options.shard = shard_over_gpus
        index = faiss.index_cpu_to_all_gpus(index, co=options)
        space: Any = faiss.GpuParameterSpace()
    else:
        space = faiss.ParameterSpace()
    state = {"nprobe": 0}

    def search(queries: NDArray[np.float32], width: int, nprobe: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if has_lists and state["nprobe"] != nprobe:
            space.set_index_parameter(index, "nprobe", nprobe)
            state["nprobe"] = nprobe
        distances, ids = index.search(np.ascontiguousarray(queries, np.float32), width)
        return distances, ids

    return search


def _reason(error: RuntimeError) -> str:
    """faiss prefixes its messages with function, file and line."""
    return re.sub(r"^Error in .*?:\d+: ", "", str(error)).strip()
