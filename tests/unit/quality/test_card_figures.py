"""Time and cost of the stages, from their reports."""

from typing import Any

import pytest

from retro_ops.quality.card_figures import stages


def report(seconds: float, device: dict[str, Any] | None) -> dict[str, Any]:
    return {"counts": {"chunks": 10}, "seconds": seconds, "device": device, "peak_rss_bytes": 1}


REPORTS = {
    "tokenize-and-chunk": [report(7200, None)],
    "embed-chunks": [report(1800, {"chosen": "cuda", "why": "", "gpus": 2}), report(900, {"chosen": "cpu", "why": ""})],
    "retrieve-neighbours": [report(3600, {"chosen": "cuda", "why": "written before GPUs were counted"})],
}


def test_the_cost_of_a_stage_is_that_of_the_gpus_its_tasks_had() -> None:
    rows = {row["stage"]: (row["gpu_seconds"], row["cost"]) for row in stages(REPORTS, None, 2.5)}
    assert rows == {"tokenize-and-chunk": (0, 0), "embed-chunks": (3600, 2.5), "retrieve-neighbours": (3600, 2.5)}


def test_without_a_price_there_is_no_cost() -> None:
    assert {row["cost"] for row in stages(REPORTS, None, None)} == {None}
    assert sum(row["gpu_seconds"] for row in stages(REPORTS, None, None)) == pytest.approx(7200)
