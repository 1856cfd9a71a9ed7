"""Lists and residual product codes on tensor cores: what faiss' ``IVF…,PQ…`` and ``IVF…,Flat`` hold, computed in torch.

The same lists and codes as faiss' own rules give, but for near ties, as operands are rounded to half. Vectors may pass
through linear transforms first, such as the rotation of ``OPQ…``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, query_operand
from retro_ops.index import kmeans

CODE_VALUES = 256
"""Of a byte."""

CODEBOOK_POINTS = CODE_VALUES * kmeans.MOST_POINTS_PER_CENTROID

APPLY_ROWS = 2**18
"""Training vectors that are transformed at a time: 400 MB of float32 at d = 384."""


@dataclass(frozen=True)
class Linear:
    """``x @ matrix + bias``: float32 ``[d, e]`` and ``[e]``, on the device."""

    matrix: Tensor
    bias: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Float32 ``[n, e]`` of ``[n, d]``."""
        return vectors.float() @ self.matrix + self.bias

    def halves(self, vectors: Tensor) -> Tensor:
        """Likewise of many, as half."""
        import torch

        return torch.cat([self(block).half() for block in vectors.split(APPLY_ROWS)])


@dataclass(frozen=True)
class Coder:
    """``centroids`` float32 ``[1, lists, e]``; ``codebooks`` float32 ``[parts, 256, e / parts]``, None to store whole
    vectors; ``transform``: what vectors pass first. All on the device."""

    centroids: Tensor
    codebooks: Tensor | None
    transform: Linear | None = None

    def encode(self, vectors: Tensor) -> Tensor:
        """faiss' stand-alone codes of ``[n, d]`` vectors, uint8 ``[n, bytes]``: the list's number (little-endian, as
        few bytes as the last one takes), then the code."""
        import torch

        if self.transform is not None:
            vectors = self.transform(vectors)
        lists = kmeans.nearest(query_operand(vectors[None]), self.centroids)[0]
        width = ((self.centroids.shape[1] - 1).bit_length() + 7) // 8
        number = lists[:, None].view(torch.uint8)[:, :width]
        if self.codebooks is None:
            return torch.cat((number, vectors.float().contiguous().view(torch.uint8)), dim=1)
        residuals = _parts(vectors.float() - self.centroids[0, lists], len(self.codebooks))
        codes = kmeans.nearest(query_operand(residuals), self.codebooks)
        return torch.cat((number, codes.T.to(torch.uint8)), dim=1)


def train(vectors: Tensor, lists: int, parts: int | None, iterations: tuple[int, int], seed: int) -> Coder:
    """Of half ``vectors`` ``[n, d]``. ``parts``: bytes of a code, None to store whole vectors. ``iterations``: of the
    lists, of the codebooks."""
    centroids = kmeans.kmeans(vectors[None], lists, iterations[0], seed)
    if parts is None:
        return Coder(centroids, None)
    sample = sampled(vectors, CODEBOOK_POINTS, seed)
    residuals = sample.float() - centroids[0, kmeans.nearest(query_operand(sample[None]), centroids)[0]]
    codebooks = kmeans.kmeans(_parts(residuals, parts).half(), CODE_VALUES, iterations[1], seed)
    return Coder(centroids, codebooks)


def rotation(
    vectors: Tensor, dimension: int, parts: int, points: int, iterations: tuple[int, int, int], seed: int
) -> Tensor:
    """Float32 ``[dimension, d]``, orthonormal: of half ``vectors`` ``[n, d]``, after which product codes of ``parts``
    bytes lose least. ``points``: as many are looked at. ``iterations``: of all, of the first codebooks, of the others.

    Codebooks of rotated vectors, and the rotation that brings the vectors nearest to what their codes say, in turns (T.
    Ge, K. He, Q. Ke and J. Sun, Optimized Product Quantization, 2013); as faiss' ``OPQMatrix``, which see.
    """
    import torch

    given = sampled(vectors, points, seed).float()
    given -= given.mean(dim=0)
    given = torch.nn.functional.pad(given, (0, max(0, dimension - given.shape[1])))
    drawn = torch.Generator().manual_seed(seed)
    random = torch.randn((given.shape[1], dimension), generator=drawn, dtype=torch.float64)
    # In float64, so that what is kept does not depend on the number of threads.
    turn: Tensor = torch.linalg.qr(random).Q.float().to(given.device)
    number = torch.arange(parts, device=given.device)[:, None]
    codebooks = None
    for _ in range(iterations[0]):
        turned = _parts(given @ turn, parts).half()
        codebooks = kmeans.kmeans(turned, CODE_VALUES, iterations[1 if codebooks is None else 2], seed, codebooks)
        said = codebooks[number, kmeans.nearest(query_operand(turned), codebooks)].transpose(0, 1).flatten(1)
        # Few numbers, of which a CPU makes shorter work.
        left, _, right = torch.linalg.svd((given.T @ said).double().cpu(), full_matrices=False)
        turn = (left @ right).float().to(given.device)
    return turn[: vectors.shape[1]].T


def sampled(vectors: Tensor, most: int, seed: int) -> Tensor:
    """``most`` of ``[n, d]``, or all there are, in their order."""
    import torch

    if len(vectors) <= most:
        return vectors
    kept = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:most]
    return vectors[kept.sort().values.to(vectors.device)]


def _parts(vectors: Tensor, parts: int) -> Tensor:
    """``[parts, n, d / parts]`` of ``[n, d]``."""
    return vectors.reshape(len(vectors), parts, -1).transpose(0, 1)


def to_host(values: Tensor) -> Callable[[], NDArray[Any]]:
    """Starts the copy; the call waits for it alone, not for what the device was given to do since."""
    import torch

    if not values.is_cuda:
        return lambda: np.asarray(values.numpy())
    copy = values.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> NDArray[Any]:
        done.synchronize()
        return np.asarray(copy.numpy())

    return wait
