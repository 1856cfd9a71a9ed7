"""Lists and residual product codes on tensor cores: what faiss' ``IVF…,PQ…`` and ``IVF…,Flat`` hold, computed in torch.

The same lists and codes as faiss' own rules give, but for near ties, as operands are rounded to half.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.core import kmeans
from retro_ops.core.nearness import Tensor, asking

CODE_VALUES = 256
"""Of a byte."""

CODEBOOK_POINTS = CODE_VALUES * kmeans.MOST_POINTS_PER_CENTROID


@dataclass(frozen=True)
class Coder:
    """``centroids`` float32 ``[1, lists, d]``; ``codebooks`` float32 ``[parts, 256, d / parts]``, None to store whole
    vectors. Both on the device."""

    centroids: Tensor
    codebooks: Tensor | None

    def encode(self, vectors: Tensor) -> Tensor:
        """faiss' stand-alone codes of ``[n, d]`` vectors, uint8 ``[n, bytes]``: the list's number (little-endian, as
        few bytes as the last one takes), then the code."""
        import torch

        lists = kmeans.nearest(asking(vectors[None]), self.centroids)[0]
        width = ((self.centroids.shape[1] - 1).bit_length() + 7) // 8
        number = lists[:, None].view(torch.uint8)[:, :width]
        if self.codebooks is None:
            return torch.cat((number, vectors.float().contiguous().view(torch.uint8)), dim=1)
        residuals = _parts(vectors.float() - self.centroids[0, lists], len(self.codebooks))
        codes = kmeans.nearest(asking(residuals), self.codebooks)
        return torch.cat((number, codes.T.to(torch.uint8)), dim=1)


def train(vectors: Tensor, lists: int, parts: int | None, iterations: tuple[int, int], seed: int) -> Coder:
    """Of half ``vectors`` ``[n, d]``. ``parts``: bytes of a code, None to store whole vectors. ``iterations``: of the
    lists, of the codebooks."""
    import torch

    centroids = kmeans.kmeans(vectors[None], lists, iterations[0], seed)
    if parts is None:
        return Coder(centroids, None)
    sample = vectors
    if len(vectors) > CODEBOOK_POINTS:
        kept = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:CODEBOOK_POINTS]
        sample = vectors[kept.sort().values.to(vectors.device)]
    residuals = sample.float() - centroids[0, kmeans.nearest(asking(sample[None]), centroids)[0]]
    codebooks = kmeans.kmeans(_parts(residuals, parts).half(), CODE_VALUES, iterations[1], seed)
    return Coder(centroids, codebooks)


def _parts(vectors: Tensor, parts: int) -> Tensor:
    """``[parts, n, d / parts]`` of ``[n, d]``."""
    return vectors.reshape(len(vectors), parts, -1).transpose(0, 1)


def on(device: str, vectors: NDArray[np.float16] | NDArray[np.float32]) -> Tensor:
    """``vectors`` on the device."""
    import torch

    # Arrays over the store's bytes cannot be written to, which torch warns of.
    return torch.from_numpy(vectors if vectors.flags.writeable else vectors.copy()).to(device)


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
