"""Counters, timers and gauges through Airflow's own metrics (StatsD, Datadog or OpenTelemetry, as it is configured)."""

import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypedDict

from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats

from retro_ops.errors import RetroError
from retro_ops.plan import documents, paths
from retro_ops.plan.series import Entry
from retro_ops.plan.stage_graph import STAGES

log = logging.getLogger(__name__)

BACKENDS = ("statsd_on", "statsd_datadog_enabled", "otel_on")

TASKS, SECONDS, BYTES = "retro.stage.reports", "retro.stage.seconds", "retro.stage.bytes"
COUNTS = {"chunks": "retro.stage.chunks", "bad_records": "retro.stage.bad_records"}
"""Counter by the name of a count in reports."""

VERSION, STORED, RECALL = "retro.dataset.version", "retro.dataset.bytes", "retro.dataset.recall"
SIZES = {name: f"retro.dataset.{name}" for name in ("shards", "documents", "chunks")}
"""Gauge by the name of a count of a version."""


class _Output(TypedDict):
    bytes: int


class _Figures(TypedDict):
    seconds: float
    counts: dict[str, int]
    outputs: list[_Output]


def are_on() -> bool:
    return any(conf.getboolean("metrics", name, fallback=False) for name in BACKENDS)


def stage_done(stage: str, dataset: str, markers: Iterable[str]) -> None:
    """Count what the reports among ``markers`` say; nothing where metrics are off."""
    from retro_ops.storage import read_ahead, store

    uris = [uri for uri in markers if uri.endswith(paths.REPORT)]
    if not are_on() or stage not in STAGES or not uris:
        return
    tags = {"stage": stage, "dataset": dataset}
    try:
        reports = read_ahead.side_by_side(lambda uri: documents.read(store.read(uri), uri, _Figures), uris)
    except RetroError as error:  # The work is done and its reports are there; figures are no reason to fail.
        log.warning("%s is not counted in the metrics: %s", stage, error)
        return
    for report in reports:
        stats.incr(TASKS, tags=tags)
        stats.timing(SECONDS, timedelta(seconds=report["seconds"]), tags=tags)
        stats.incr(BYTES, sum(output["bytes"] for output in report["outputs"]), tags=tags)
        for name, counter in COUNTS.items():
            if report["counts"].get(name):
                stats.incr(counter, report["counts"][name], tags=tags)


def version_published(dataset: str, entry: Entry) -> None:
    """Set the gauges of a dataset to the figures of its new version."""
    tags = {"dataset": dataset}
    stats.gauge(VERSION, entry["version"], tags=tags)
    for name, gauge in SIZES.items():
        if name in entry["counts"]:
            stats.gauge(gauge, entry["counts"][name], tags=tags)
    figures: Mapping[str, Any] = entry.get("figures", {})
    if "stored_bytes" in figures:
        stats.gauge(STORED, figures["stored_bytes"], tags=tags)
    for split, of in figures.get("quality", {}).items():
        stats.gauge(RECALL, of["recall"], tags={**tags, "split": split})
