"""k-means on tensor cores, by the rules of faiss (``Clustering::train``): at most 256 points for each centroid, random
points to begin with, empty clusters refilled by splitting large ones. Independent problems of one shape are solved
together.

Deterministic, with the same result on any number of equal devices: points of a cluster are summed in their order, never
by atomic addition, on the device of the points. Other devices compute distances, which take most of the time.
"""

from collections.abc import Sequence
from itertools import zip_longest
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


def kmeans(
    points: Tensor,
    count: int,
    iterations: int,
    seed: int,
    start: Tensor | None = None,
    devices: Sequence[str] = (),
) -> Tensor:
    """Centroids float32 ``[b, count, d]`` of each of ``b`` sets of half ``points`` ``[b, n, d]``, n >= ``count``.

    ``start``: centroids to begin with, in place of random points. ``devices``: torch's names of those that compute
    distances, each for a share of the points; none: that of the points.
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
    operands = [query_operand(share.to(device)) for share, device in _shares(points, devices or (points.device,))]
    flat = points.reshape(problems * rows, dimension)
    problem = torch.arange(problems, device=points.device)[:, None] * count
    draw = np.random.default_rng(seed)
    for _ in range(iterations):
        labels = (_nearest(operands, centroids) + problem).reshape(-1)
        sums, sizes = _sums(flat, labels, problems * count)
        centroids = (sums / sizes.clamp(min=1)[:, None]).reshape(problems, count, dimension)
        _refill(centroids, sizes.reshape(problems, count), draw)
    return centroids


def nearest(operand: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest of ``centroids`` ``[b, k, d]`` to each point: int64 ``[b, n]``.

    ``operand`` ``[b, n, c]``: left operand of the scores of the points.
    """
    return _nearest([operand], centroids)


def _shares(points: Tensor, devices: Sequence[Any]) -> list[tuple[Tensor, Any]]:
    """``points`` ``[b, n, d]`` cut along n, a share for each device. All blocks but the last have BLOCK_ROWS, on any
    number of devices, so that their products have the same shapes and results."""
    blocks = -(-points.shape[1] // BLOCK_ROWS)
    rows = max(1, -(-blocks // len(devices))) * BLOCK_ROWS
    return list(zip(points.split(rows, dim=1), devices, strict=False))


def _nearest(operands: Sequence[Tensor], centroids: Tensor) -> Tensor:
    """``nearest`` of points whose ``operands`` are on several devices, on the device of ``centroids``."""
    import torch

    rights = [vector_operand(centroids.to(operand.device)) for operand in operands]
    found: list[list[Tensor]] = [[] for _ in operands]
    # The devices in turn: the queue of one device holds fewer operations than there are.
    for blocks in zip_longest(*(operand.split(BLOCK_ROWS, dim=1) for operand in operands)):
        for labels, block, right in zip(found, blocks, rights, strict=True):
            if block is not None:
                labels.append(scores(block, right).argmax(dim=-1))
    return torch.cat([torch.cat(labels, dim=1).to(centroids.device) for labels in found], dim=1)


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
