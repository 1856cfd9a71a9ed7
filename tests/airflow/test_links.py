"""Links from tasks to the pages of their run, and the note of a run."""

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models import DagRun
from retro_airflow import links, run_notes
from retro_airflow.stage_operator import StageOperator
from sqlalchemy.orm import Session

from retro_ops.plan import paths

RUN = "s3://bucket/all data/demo/runs/manual__2026-11-30T01-00-00-00-00"
ROOT_KEY = paths.root_key("s3://bucket/all data")
AT = f"/plugin/retro-datasets/retro/{ROOT_KEY}/demo/runs/manual__2026-11-30T01-00-00-00-00"


def links_of(stage: str, arguments: Any) -> dict[str, str]:
    task = SimpleNamespace(stage=stage, arguments=arguments)
    return {link.name: link.get_link(task, ti_key=None) for link in links.LINKS}


def test_links_lead_to_the_pages_of_the_run() -> None:
    assert StageOperator.operator_extra_links == links.LINKS
    at_end = links_of("publish", {"plan": f"{RUN}/plan.selected.decided.json"})
    assert at_end == {
        "Run and shards": AT,
        "Dataset card": f"{AT}/card",
        "Neighbours": f"{AT}/neighbours",
        "Bad records": "",
    }
    of_shard = links_of("retrieve-neighbours", {"plan": f"{RUN}/plan.json", "shard": "00_news"})
    assert of_shard["Run and shards"] == f"{AT}/shards?search=00_news"
    assert of_shard["Neighbours"] == f"{AT}/neighbours?shard=00_news"
    of_documents = links_of("tokenize-and-chunk", {"plan": f"{RUN}/plan.json", "shard": "00_news"})
    assert of_documents["Bad records"] == f"{AT}/bad-records?shard=00_news"
    assert links_of("embed-chunks", {"plan": f"{RUN}/plan.json", "shard": "a,b"})["Run and shards"] == AT
    assert links_of("list-sources", {"output": f"{RUN}/sources.json"})["Run and shards"] == AT


@pytest.mark.parametrize("arguments", [{}, {"plan": ""}, {"plan": "/elsewhere/plan.json"}, None, lambda context: {}])
def test_a_task_without_a_run_has_no_links(arguments: Any) -> None:
    assert set(links_of("publish", arguments).values()) == {""}


def test_links_keep_the_path_of_the_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/airflow/")
    found = links_of("plan", {"output": f"{RUN}/plan.json"})["Run and shards"]
    assert found.startswith("/airflow/plugin/retro-datasets/airflow/retro/")
    assert links.absolute(found).startswith("https://example.org/airflow/plugin/")


def dag_run(**values: Any) -> Any:
    known = {"dag_id": "retro_dataset", "conf": {"dataset": "demo"}, "note": None, "dag": None}
    return SimpleNamespace(**known | values)


def test_a_run_names_its_dataset_from_the_start() -> None:
    run = dag_run()
    run_notes.on_dag_run_running(run, "started")
    assert run.note == "Dataset demo"
    for other in (dag_run(note="mine"), dag_run(dag_id="another")):
        note = other.note
        run_notes.on_dag_run_running(other, "started")
        assert other.note == note
    of_form = dag_run(conf={}, dag=SimpleNamespace(params=SimpleNamespace(dump=lambda: {"dataset": "by default"})))
    run_notes.on_dag_run_running(of_form, "started")
    assert of_form.note == "Dataset by default"


def test_a_note_of_the_user_stays() -> None:
    run = DagRun(dag_id="retro_dataset", run_id="r", conf={"dataset": "demo"})
    run_notes.on_dag_run_success(run, "as at the end of `airflow dags test`, without a session")
    with Session() as session:
        session.add(run)
        run.note = "mine"
        run_notes.on_dag_run_success(run, "success")
        assert run.note == "mine"
        session.expunge_all()
