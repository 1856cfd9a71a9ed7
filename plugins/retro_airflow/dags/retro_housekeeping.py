"""Ends stages that outlived their worker and that no retry took over. Wiring only."""

from datetime import timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

from retro_airflow import tasks

with DAG(
    "retro_housekeeping",
    description="End stages that no task watches anymore",
    doc_md=tasks.end_orphans.__doc__,
    schedule=timedelta(minutes=15),
    catchup=False,
    max_active_runs=1,
    # Needed wherever the other DAGs run: while it is paused, an orphaned container may hold a GPU for days.
    is_paused_upon_creation=False,
    default_args={"owner": "retro", "retries": 1},
    tags=["retro"],
) as dag:
    PythonOperator(task_id="end_orphans", python_callable=tasks.end_orphans)
