"""Scores in half precision."""

import torch

from retro_ops.compute import fp16_scores
from retro_ops.compute.device import Device
from retro_ops.compute.fp16_scores import prepare

CPU = Device("cpu", "test")


def test_torch_is_set_to_sum_in_float32() -> None:
    assert prepare(CPU) == "cpu"
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction


def test_a_score_is_half_the_distance_less_what_all_scores_of_a_query_share() -> None:
    random = torch.Generator().manual_seed(0)
    q, x = (torch.nn.functional.normalize(torch.randn((50, 384), generator=random), dim=1).half() for _ in range(2))
    expected = (q.double().square().sum(dim=1, keepdim=True) - torch.cdist(q.double(), x.double()) ** 2) / 2
    found = fp16_scores.scores(fp16_scores.query_operand(q), fp16_scores.vector_operand(x))
    assert (found.double() - expected).abs().max() < fp16_scores.ROUNDING
