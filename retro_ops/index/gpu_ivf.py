"""Computes lists and residual product codes on tensor cores: faiss' ``IVF…,PQ…`` and ``IVF…,Flat``, in torch.

Lists and codes are those that faiss computes, except for near ties, since operands are rounded to half. Linear
transforms, such as the rotation of ``OPQ…``, may come first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, query_operand
from retro_ops.index import kmeans

CODE_VALUES = 256
"""Values of a code of one byte."""

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
        """Float16 ``[n, e]`` of ``[n, d]``, computed in blocks."""
        import torch

        return torch.cat([self(block).half() for block in vectors.split(APPLY_ROWS)])


@dataclass(frozen=True)
class Coder:
    """Computes lists and codes. All tensors are on the device."""

    centroids: Tensor
    """Float32 ``[1, lists, e]``."""
    codebooks: Tensor | None
    """Float32 ``[parts, 256, e / parts]``; None to store whole vectors."""
    transform: Linear | None = None
    """Applied to vectors first."""

    def encode(self, vectors: Tensor) -> Tensor:
        """faiss' stand-alone codes of ``vectors`` ``[n, d]``, uint8 ``[n, bytes]``.

        First the number of the list (little-endian, in as few bytes as the last list needs), then the code.
        """
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


def train(
    vectors: Tensor,
    lists: int,
    parts: int | None,
    iterations: tuple[int, int],
    seed: int,
    devices: Sequence[str] = (),
) -> Coder:
    """Train centroids and codebooks on half ``vectors`` ``[n, d]``.

    ``parts``: bytes of a code, None to store whole vectors. ``iterations``: of k-means for the lists, and for the
    codebooks. ``devices``: see ``kmeans``; codebooks take too little time to divide.
    """
    centroids = kmeans.kmeans(vectors[None], lists, iterations[0], seed, devices=devices)
    if parts is None:
        return Coder(centroids, None)
    sample = sampled(vectors, CODEBOOK_POINTS, seed)
    residuals = sample.float() - centroids[0, kmeans.nearest(query_operand(sample[None]), centroids)[0]]
    codebooks = kmeans.kmeans(_parts(residuals, parts).half(), CODE_VALUES, iterations[1], seed)
    return Coder(centroids, codebooks)


def rotation(
    vectors: Tensor, dimension: int, parts: int, points: int, iterations: tuple[int, int, int], seed: int
) -> Tensor:
    """The rotation after which product codes of ``parts`` bytes lose least: float32 ``[dimension, d]``, orthonormal.

    Optimized Product Quantization (T. Ge, K. He, Q. Ke and J. Sun, 2013, non-parametric), as in faiss' ``OPQMatrix``:

    1. Centre a sample of ``points`` of the half ``vectors`` ``[n, d]``, and begin with a random rotation.
    2. Train codebooks on the rotated sample, from those of the round before.
    3. The best rotation onto the decoded vectors is the solution of an orthogonal Procrustes problem, by SVD.
    4. Repeat steps 2 and 3.

    ``iterations``: rounds, and iterations of k-means in the first round and in the others.
    """
    import torch

    sample = sampled(vectors, points, seed).float()
    sample -= sample.mean(dim=0)
    sample = torch.nn.functional.pad(sample, (0, max(0, dimension - sample.shape[1])))
    drawn = torch.Generator().manual_seed(seed)
    random = torch.randn((sample.shape[1], dimension), generator=drawn, dtype=torch.float64)
    # In float64, so that the rounded result does not depend on the number of threads.
    turn: Tensor = torch.linalg.qr(random).Q.float().to(sample.device)
    number = torch.arange(parts, device=sample.device)[:, None]
    codebooks = None
    for _ in range(iterations[0]):
        turned = _parts(sample @ turn, parts).half()
        codebooks = kmeans.kmeans(turned, CODE_VALUES, iterations[1 if codebooks is None else 2], seed, codebooks)
        decoded = codebooks[number, kmeans.nearest(query_operand(turned), codebooks)].transpose(0, 1).flatten(1)
        # A small matrix, which a CPU decomposes faster.
        left, _, right = torch.linalg.svd((sample.T @ decoded).double().cpu(), full_matrices=False)
        turn = (left @ right).float().to(sample.device)
    return turn[: vectors.shape[1]].T


def sampled(vectors: Tensor, most: int, seed: int) -> Tensor:
    """A sample of ``most`` of ``vectors`` ``[n, d]``, in their order; all of them if there are no more."""
    import torch

    if len(vectors) <= most:
        return vectors
    kept = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:most]
    return vectors[kept.sort().values.to(vectors.device)]


def _parts(vectors: Tensor, parts: int) -> Tensor:
    """``vectors`` ``[n, d]`` cut into parts: ``[parts, n, d / parts]``."""
    return vectors.reshape(len(vectors), parts, -1).transpose(0, 1)


def to_host(values: Tensor) -> Callable[[], NDArray[Any]]:
    """Starts to copy ``values``. The returned function waits for the copy alone, not for later work on the device."""
    import torch

    if not values.is_cuda:
        return lambda: np.asarray(values.numpy())
    copy = values.to("cpu", non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def wait() -> NDArray[Any]:
        done.synchronize()
        return np.asarray(copy.numpy())

    return wait
