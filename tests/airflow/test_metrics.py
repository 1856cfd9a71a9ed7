"""What is sent through Airflow's metrics, and the dashboard that shows it."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk._shared.observability.metrics.stats import NoStatsLogger
from airflow.sdk.observability import stats
from live_airflow import REPOSITORY
from retro_airflow import metrics

Sent = list[tuple[str, Any, dict[str, str]]]


class Backend:
    """Keeps what Airflow would send."""

    def __init__(self) -> None:
        self.sent: Sent = []

    def incr(self, name: str, count: int = 1, tags: Any = None) -> None:
        self.sent.append((name, count, tags))

    def timing(self, name: str, dt: timedelta, tags: Any = None) -> None:
        self.sent.append((name, dt.total_seconds(), tags))

    gauge = incr


@pytest.fixture
def sent() -> Iterator[Sent]:
    backend: Any = Backend()
    stats.initialize(factory=lambda: backend, export_legacy_names=False)
    yield backend.sent
    stats.initialize(factory=NoStatsLogger, export_legacy_names=False)


def test_a_finished_stage_is_counted(tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.json"
    counts = {"chunks": 7, "documents": 3, "bad_records": 2}
    report.write_text(json.dumps({"seconds": 1.5, "counts": counts, "outputs": [{"bytes": 10}, {"bytes": 20}]}))
    metrics.stage_done("tokenize-and-chunk", "demo", [str(report)])
    assert sent == [], "metrics are off by default"
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    metrics.stage_done("rollback", "demo", [str(tmp_path / "current.json")])
    assert sent == []
    metrics.stage_done("tokenize-and-chunk", "demo", [str(report)])
    tags = {"stage": "tokenize-and-chunk", "dataset": "demo"}
    assert sent == [
        ("retro.stage.reports", 1, tags),
        ("retro.stage.seconds", 1.5, tags),
        ("retro.stage.bytes", 30, tags),
        ("retro.stage.chunks", 7, tags),
        ("retro.stage.bad_records", 2, tags),
    ]


def test_a_report_that_cannot_be_read_fails_no_task(
    tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    metrics.stage_done("embed-chunks", "demo", [str(tmp_path / "report.json")])
    assert sent == []
    assert "embed-chunks is not counted" in caplog.text


def test_a_published_version_sets_the_gauges(sent: Sent) -> None:
    figures = {"stored_bytes": 5, "quality": {"train": {"recall": 0.9}, "val": {"recall": 0.8}}}
    metrics.version_published("demo", {"version": 3, "counts": {"chunks": 7, "shards": 2}, "figures": figures})
    assert {(name, value, tags.get("split")) for name, value, tags in sent} == {
        ("retro.dataset.version", 3, None),
        ("retro.dataset.chunks", 7, None),
        ("retro.dataset.shards", 2, None),
        ("retro.dataset.bytes", 5, None),
        ("retro.dataset.recall", 0.9, "train"),
        ("retro.dataset.recall", 0.8, "val"),
    }


def test_the_dashboard_shows_what_is_sent_and_nothing_else() -> None:
    dashboard = json.loads((REPOSITORY / "deploy/grafana/retro.json").read_text())
    shown = {name for panel in dashboard["panels"] for target in panel["targets"] for name in used(target["expr"])}
    names = [metrics.TASKS, metrics.SECONDS, metrics.BYTES, metrics.VERSION, metrics.STORED, metrics.RECALL]
    names += [*metrics.COUNTS.values(), *metrics.SIZES.values()]
    assert shown == {name.replace(".", "_") for name in names}


def used(expression: str) -> list[str]:
    return [re.sub("_(total|sum|count)$", "", name) for name in re.findall(r"airflow_(retro_\w+)", expression)]
