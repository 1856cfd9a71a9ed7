"""k-means on tensor cores, by the rules of faiss (``Clustering::train``): at most 256 points for each centroid, random
points to begin with, empty clusters refilled by splitting large ones. Independent problems of one shape are solved
together.

Deterministic on one device: points of a cluster are summed in their order, never by atomic addition.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retro_ops.compute.fp16_scores import Tensor, query_operand, scores, vector_operand

MOST_POINTS_PER_CENTROID = 256

BLOCK_ROWS = 16_384
"""Points whose scores with all centroids are held at a time: 1 GiB for 32,768 centroids."""

SUM_ROWS = 2**19
"""Points summed at a time: 800 MB of float32 at d = 384."""

SPLIT = 1 / 1024
"""A cluster is split by moving each number up or down by this share, in turn."""


def kmeans(points: Tensor, count: int, iterations: int, seed: int, start: Tensor | None = None) -> Tensor:
    """Centroids float32 ``[b, count, d]`` of each of ``b`` sets of half ``points`` ``[b, n, d]``, n >= ``count``.

    ``start``: centroids to begin with, in place of random points.
    """
    import torch

    problems, rows, dimension = points.shape
    random = torch.Generator().manual_seed(seed)
    if rows > count * MOST_POINTS_PER_CENTROID:
        kept = torch.randperm(rows, generator=random)[: count * MOST_POINTS_PER_CENTROID].sort().values
        points = points[:, kept.to(points.device)]
        rows = points.shape[1]
    if start is None:
        first = torch.randperm(rows, generator=random)[:count]
        start = points[:, first.to(points.device)].float()
    centroids = start
    operand = query_operand(points)
    flat = points.reshape(problems * rows, dimension)
    problem = torch.arange(problems, device=points.device)[:, None] * count
    draw = np.random.default_rng(seed)
    for _ in range(iterations):
        labels = (nearest(operand, centroids) + problem).reshape(-1)
        sums, sizes = _sums(flat, labels, problems * count)
        centroids = (sums / sizes.clamp(min=1)[:, None]).reshape(problems, count, dimension)
        _refill(centroids, sizes.reshape(problems, count), draw)
    return centroids


def nearest(operand: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest of ``centroids`` ``[b, k, d]`` to each point: int64 ``[b, n]``.

    ``operand`` ``[b, n, c]``: left operand of the scores of the points.
    """
    import torch

    right = vector_operand(centroids)
    blocks = operand.split(BLOCK_ROWS, dim=1)
    return torch.cat([scores(block, right).argmax(dim=-1) for block in blocks], dim=1)


def _sums(points: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum (float32 ``[count, d]``) and number (int64 ``[count]``) of ``points`` ``[n, d]`` by label, ``[n]``."""
    import torch

    order = torch.argsort(labels, stable=True)
    sums = torch.zeros((count, points.shape[1]), device=points.device)
    for part in order.split(SUM_ROWS):
        lengths = torch.bincount(labels[part], minlength=count)
        sums += torch.segment_reduce(points[part].float(), "sum", lengths=lengths, unsafe=True, initial=0)
    return sums, torch.bincount(labels, minlength=count)


def _refill(centroids: Tensor, sizes: Tensor, draw: np.random.Generator) -> None:
    """Split another cluster, drawn by size, for each empty one; in place."""
    problems: NDArray[Any] = sizes.cpu().numpy().copy()
    signs = centroids.new_full((centroids.shape[-1],), SPLIT)
    signs[1::2] *= -1
    for problem, counts in enumerate(problems):
        for empty in np.flatnonzero(counts == 0).tolist():
            spare = np.cumsum(np.maximum(counts - 1, 0))
            donor = int(np.searchsorted(spare, draw.integers(spare[-1]), side="right"))
            centroids[problem, empty] = centroids[problem, donor] * (1 + signs)
            centroids[problem, donor] *= 1 - signs
            counts[empty] = counts[donor] // 2
            counts[donor] -= counts[empty]
