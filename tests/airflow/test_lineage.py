"""OpenLineage events of a published version, as a server receives them."""

import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attr
import openlineage.client.facet_v2 as facets
import pytest
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
from openlineage.client.transport.http import HttpConfig, HttpTransport
from retro_airflow import lineage
from retro_airflow.stage_operator import StageOperator
from stored_dataset import write_dataset

from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters

FACETS = {
    "schema": facets.schema_dataset.SchemaDatasetFacet,
    "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet,
    "dataQualityAssertions": facets.data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet,
    "outputStatistics": facets.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}
"""Classes that OpenLineage generates from the JSON schemas of its facets."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    events: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", events
    httpd.shutdown()
    httpd.server_close()


def test_a_published_version_is_sent_with_its_corpus_and_quality(
    tmp_path: Path, server: tuple[str, list[dict[str, Any]]]
) -> None:
    write_dataset(tmp_path, "news", versions=2)
    plan_uri = paths.plan_uri(str(tmp_path), "news", "run-2")
    publish = StageOperator(task_id="publish", stage="publish", arguments={"plan": plan_uri})
    found = publish.get_openlineage_facets_on_complete(None)
    url, events = server
    event = RunEvent(
        eventType=RunState.COMPLETE,
        eventTime=datetime.now(UTC).isoformat(),
        run=Run(str(uuid.uuid4())),
        job=Job("airflow", "retro_dataset.publish.publish", facets=found.job_facets),
        producer="https://example.org/retro",
        inputs=found.inputs,
        outputs=found.outputs,
    )
    OpenLineageClient(transport=HttpTransport(HttpConfig(url=url))).emit(event)
    (sent,) = events
    assert [(entry["namespace"], entry["name"]) for entry in sent["inputs"]] == [
        ("file", f"/corpus/{number}.jsonl") for number in range(3)
    ]
    (output,) = sent["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{tmp_path}/news")
    assert output["facets"]["version"]["datasetVersion"] == "2"
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"]) == (18, 1_500_000)
    assert [field["name"] for field in output["facets"]["schema"]["fields"]] == ["chunks", "neighbours", "distances"]
    by_name = {entry["assertion"]: entry for entry in output["facets"]["dataQualityAssertions"]["assertions"]}
    assert "max_leaked of train" not in by_name
    recall, leaked = by_name["min_recall of train"], by_name["max_leaked of val"]
    assert (recall["actual"], recall["expected"], recall["success"]) == ("0.9000", ">= 0.8", True)
    assert (leaked["actual"], leaked["expected"], leaked["success"]) == ("0.2500", "<= 1.0", True)
    for name, facet in {**output["facets"], **output["outputFacets"]}.items():
        check_facet(facet, FACETS[name])


def test_an_assertion_says_which_limit_a_figure_misses() -> None:
    figures = {"recall": 0.9, "fill_rate": 1.0, "near_duplicate": 0.1, "leaked": 0.25}
    limits = Parameters(min_recall=0.95, max_leaked=0.2, min_full_rows=1.0)
    found = {entry.assertion: entry.success for entry in lineage._assertions({"val": figures}, limits)}
    assert found == {
        "min_recall of val": False,
        "min_full_rows of val": True,
        "max_duplicates of val": True,
        "max_leaked of val": False,
    }


def check_facet(facet: dict[str, Any], kind: Any) -> None:
    """Compare a facet with its class: no unknown key, no required one missing, and the address of its schema."""
    known = {field.name: field.default is attr.NOTHING for field in attr.fields(kind)}
    assert facet["_schemaURL"] == kind._get_schema()
    assert facet["_producer"]
    keys = set(facet) - {"_schemaURL", "_producer"}
    assert keys <= set(known)
    assert {name for name, required in known.items() if required} <= keys


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://bucket/all data/a.jsonl", ("s3://bucket", "all data/a.jsonl")),
        ("s3://bucket", ("s3://bucket", "/")),
        ("/srv/corpus/a.jsonl", ("file", "/srv/corpus/a.jsonl")),
    ],
)
def test_names_follow_the_convention(uri: str, found: tuple[str, str]) -> None:
    assert lineage.name(uri) == found


def test_other_stages_have_no_lineage_of_their_own() -> None:
    task = StageOperator(task_id="t", stage="describe", arguments={"plan": "/nowhere/plan.json"})
    assert task.get_openlineage_facets_on_complete(None) is None
