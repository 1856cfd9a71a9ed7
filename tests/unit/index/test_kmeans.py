"""Clusters: none stays empty, and no more points are used than help."""

import pytest
import torch

from retro_ops.compute import fp16_scores
from retro_ops.index import kmeans


def test_empty_clusters_are_refilled_and_every_point_is_near_a_centroid() -> None:
    """Twenty places, forty clusters: half of the first centroids are copies."""
    places = torch.nn.functional.normalize(torch.randn((20, 16), generator=torch.Generator().manual_seed(0)), dim=1)
    points = places.half()[torch.arange(2000) % 20][None]
    centroids = kmeans.kmeans(points, 40, 10, seed=0)
    labels = kmeans.nearest(fp16_scores.query_operand(points), centroids)[0]
    assert torch.linalg.norm(centroids[0, labels] - points[0].float(), dim=1).max() < 0.01
    assert torch.isfinite(centroids).all()


def test_more_points_than_help_are_sampled() -> None:
    points = torch.randn((2, 4000, 8), generator=torch.Generator().manual_seed(0)).half()
    few = kmeans.kmeans(points, 2, 3, seed=0)
    many = kmeans.kmeans(points[:, :512], 2, 3, seed=0)
    assert few.shape == many.shape == (2, 2, 8)
    assert not torch.equal(few, many)


@pytest.mark.parametrize("rows", [40, 300, 1001])
@pytest.mark.parametrize("devices", [1, 2, 3, 7])
def test_the_number_of_devices_changes_no_bit(rows: int, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 100)
    points = torch.randn((1, rows, 8), generator=torch.Generator().manual_seed(0)).half()
    alone, divided = (kmeans.kmeans(points, 20, 4, seed=0, devices=of) for of in ((), ("cpu",) * devices))
    assert torch.equal(alone, divided)
