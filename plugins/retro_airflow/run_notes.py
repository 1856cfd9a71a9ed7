"""Notes of runs: the dataset when a run starts, then the version that it published. Called by the scheduler."""

import contextlib
from typing import Any

from airflow.listeners import hookimpl
from airflow.models.xcom import XComModel
from sqlalchemy.orm import object_session

SUMMARY = "summary"
"""Key under which the last task that decides about a run leaves its note."""

SUMMARISED_BY = ("publish.publish", "publish.approve", "anything_to_do")

BUILDING_DAGS = ("retro_dataset", "massive_open_text", "retro_refresh", "retro_repair")

DAGS = (*BUILDING_DAGS, "retro_rollback", "retro_prune")
"""DAGs whose runs have a dataset."""


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    if dag_run.dag_id in DAGS and not dag_run.note:
        dag_run.note = _first_note(dag_run)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    session = object_session(dag_run)
    if session is None or dag_run.dag_id not in DAGS:
        return  # In `airflow dags test` a run has no session at its end, and its note cannot be read.
    if dag_run.note not in (None, "", _first_note(dag_run)):
        return  # A note of the user stays.
    query = XComModel.get_many(run_id=dag_run.run_id, dag_ids=dag_run.dag_id, task_ids=SUMMARISED_BY, key=SUMMARY)
    found = session.scalar(query)
    if found is not None:
        dag_run.note = str(XComModel.deserialize_value(found))


def _first_note(dag_run: Any) -> str | None:
    """The dataset of the form, or that of the deployment."""
    name = (dag_run.conf or {}).get("dataset")
    with contextlib.suppress(AttributeError, KeyError):
        name = name or dag_run.dag.params.dump()["dataset"]
    return f"Dataset {name}" if name else None
