"""Trains an index: by faiss, or on tensor cores if the type allows it."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.device import Device, gpus
from retro_ops.compute.fp16_scores import on, prepare
from retro_ops.errors import BadInputError
from retro_ops.index import gpu_ivf
from retro_ops.index.faiss_index import faiss_message, inner_index, layers_of, list_count, transforms_of
from retro_ops.index.index_types import too_small

DEFAULT_TRAINING_VECTORS_PER_LIST = 256
"""More do not help: faiss itself samples down to 256 points a centroid."""

WITHOUT_LISTS_TRAINING_VECTORS = 65_536

PCA_POINTS_PER_DIMENSION = 1000
"""More do not help: faiss itself samples down to them."""


def training_vectors(index: Any) -> int:
    """Default number of training vectors."""
    lists = list_count(index)
    return lists * DEFAULT_TRAINING_VECTORS_PER_LIST if lists > 1 else WITHOUT_LISTS_TRAINING_VECTORS


def on_tensor_cores(index: Any) -> bool:
    """Whether ``gpu_ivf`` can train and fill ``index``: plain lists of whole vectors, or of product codes of one byte a
    part, behind no transforms or linear ones that do not lengthen vectors."""
    inner: Any = inner_index(index)
    if type(inner) not in (faiss.IndexIVFFlat, faiss.IndexIVFPQ) or not all(map(_only_turns, transforms_of(index))):
        return False
    plain = isinstance(faiss.downcast_index(inner.quantizer), faiss.IndexFlat) and inner.metric_type == faiss.METRIC_L2
    return plain and (type(inner) is faiss.IndexIVFFlat or (inner.pq.nbits == 8 and bool(inner.by_residual)))


def _only_turns(transform: Any) -> bool:
    whitens = isinstance(transform, faiss.PCAMatrix) and transform.eigen_power != 0
    return isinstance(transform, faiss.OPQMatrix | faiss.PCAMatrix | faiss.RandomRotationMatrix) and not whitens


def train(index: Any, vectors: NDArray[Any], seed: int, index_type: str, device: Device) -> None:
    """Train ``index`` in place on ``vectors`` ``[n, d]``. It stays on the CPU, and holds no vectors afterwards."""
    reason = too_small(index, len(vectors))
    if device.chosen == "cuda" and reason is None and on_tensor_cores(index):
        prepare(device)
        train_on(gpus(), index, vectors, seed)
    else:
        _train_by_faiss(index, vectors.astype(np.float32, copy=False), seed, index_type, device)


def train_on(devices: Sequence[str], index: Any, vectors: NDArray[Any], seed: int) -> None:
    """Train an ``index`` for which ``on_tensor_cores`` holds, in place. ``devices``: torch's names; the first holds all
    ``vectors``."""
    device = devices[0]
    inner = inner_index(index)
    codes = isinstance(inner, faiss.IndexIVFPQ)
    iterations = inner.cp.niter, inner.pq.cp.niter if codes else 0
    points = on(device, vectors).half()
    if not bool(points.isfinite().all()):
        raise BadInputError("some embeddings hold numbers that are not finite", "embed their shards again")
    for transform in transforms_of(index):
        _train_transform(transform, points, seed)
        points = linear([transform], device).halves(points)
    trained = gpu_ivf.train(points, inner.nlist, inner.pq.M if codes else None, iterations, seed, devices)
    inner.quantizer.add(trained.centroids[0].cpu().numpy())
    if trained.codebooks is not None:
        faiss.copy_array_to_vector(trained.codebooks.cpu().numpy().reshape(-1), inner.pq.centroids)
        inner.precompute_table()
    for layer in layers_of(index):
        layer.is_trained = True


def _train_transform(transform: Any, points: Any, seed: int) -> None:
    """Train a transform in place on half ``points`` ``[n, d_in]`` on a device."""
    if isinstance(transform, faiss.OPQMatrix):
        iterations = transform.niter, transform.niter_pq_0, transform.niter_pq
        most = transform.max_train_points
        turn = gpu_ivf.rotation(points, transform.d_out, transform.M, most, iterations, seed)
        faiss.copy_array_to_vector(turn.cpu().numpy().reshape(-1), transform.A)
        transform.is_trained = transform.is_orthonormal = True
    elif not transform.is_trained:
        some = gpu_ivf.sampled(points, PCA_POINTS_PER_DIMENSION * transform.d_in, seed)
        transform.train(some.float().cpu().numpy())


def linear(transforms: list[Any], device: str) -> gpu_ivf.Linear:
    """The trained ``transforms``, applied one after the other, as one."""
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
    rotations = [transform for transform in transforms_of(index) if isinstance(transform, faiss.OPQMatrix)]
    quantisers = [faiss.ProductQuantizer(of.d_out, of.M, 8) for of in rotations]
    for transform, quantiser in zip(rotations, quantisers, strict=True):
        transform.pq = quantiser
    for clustering in _clusterings(inner):
        clustering.seed = seed % 2**31  # An int of C.
    for clustering in _clusterings(inner) + [quantiser.cp for quantiser in quantisers]:
        # faiss would warn once per subspace and iteration; the stage logs it once.
        clustering.min_points_per_centroid = 1
    if hasattr(inner, "do_polysemous_training"):
        # It permutes codes for a Hamming filter that is not used here, and takes most of the time.
        inner.do_polysemous_training = False
    if isinstance(inner, faiss.IndexIVF) and device.chosen == "cuda":
        on_gpu = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(inner.d))  # must outlive train()
        inner.clustering_index = on_gpu
    try:
        index.train(vectors)
    except RuntimeError as error:
        if too_small(index, len(vectors)) is None:
            raise BadInputError(
                f"faiss cannot train index type {index_type!r} on {len(vectors):,} vectors: {faiss_message(error)}",
                "choose another --index-type, or auto",
            ) from error
        raise BadInputError(
            f"{len(vectors):,} vectors are too few to train index type {index_type!r}: {faiss_message(error)}",
            "choose --index-type auto, fewer lists (about a thirtieth of the vectors) or Flat instead of PQ, or set "
            "--index-too-small downgrade",
        ) from error
    if on_gpu is not None:
        inner.clustering_index = None
    for transform in rotations:
        transform.pq = None


def _clusterings(inner: Any) -> list[Any]:
    lists = [inner.cp] if isinstance(inner, faiss.IndexIVF) else []
    return lists + ([inner.pq.cp] if hasattr(inner, "pq") else [])
