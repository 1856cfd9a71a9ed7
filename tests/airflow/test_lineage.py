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
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
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
    "documentation": facets.documentation_job.DocumentationJobFacet,
}
"""Classes that OpenLineage generates from its JSON schemas. The client does not contain the schemas themselves."""


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
    check_event(sent)


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


def check_event(event: dict[str, Any]) -> None:
    """Compare a whole event, as received, with the classes of its parts."""
    assert event["schemaURL"] == RunEvent._get_schema()
    for part, kind in ((event, RunEvent), (event["run"], Run), (event["job"], Job)):
        check(part, kind)
    for kind, datasets in ((InputDataset, event["inputs"]), (OutputDataset, event["outputs"])):
        for dataset in datasets:
            check(dataset, kind)
    (output,) = event["outputs"]
    for name, facet in {**event["job"]["facets"], **output["facets"], **output["outputFacets"]}.items():
        assert facet["_producer"]
        assert facet["_schemaURL"] == FACETS[name]._get_schema()
        check(facet, FACETS[name])


def check(document: dict[str, Any], kind: Any) -> None:
    """No unknown key, no required one missing, and values that the validators of the class accept."""
    given = {field.alias.lstrip("_"): field for field in attr.fields(kind)}
    keys = {key.lstrip("_") for key in document}
    assert keys <= set(given), kind
    assert {name for name, field in given.items() if field.init and field.default is attr.NOTHING} <= keys, kind
    kind(**{key: value for key, value in document.items() if (found := given.get(key)) and found.init})


def test_a_wrong_event_is_noticed() -> None:
    with pytest.raises(ValueError, match="badly formed"):
        check({"runId": "1"}, Run)
    with pytest.raises(AssertionError):
        check({"runId": str(uuid.uuid4()), "id": 1}, Run)
    with pytest.raises(AssertionError):
        check({"namespace": "file"}, InputDataset)


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
