"""Makes an earlier version of a RETRO dataset the current one again. Wiring only."""

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments
from retro_airflow.stage_operator import StageOperator

DOC = """
### Roll back a RETRO dataset

Makes another version the current one, after checking that all of its files exist. Readers see it from then on. No file
is removed, so that you can undo it in the same way.

Fix the corpus before the next refresh, which starts from the version that is then current.
"""

config = settings.load()

with DAG(
    "retro_rollback",
    description="Make an earlier version of a RETRO dataset the current one",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    **pipeline.dag_arguments(config),
) as dag:
    StageOperator(task_id="rollback", stage="rollback", arguments=stage_arguments.rollback_arguments, doc_md=DOC)
    pipeline.add_form(dag, forms.rollback_form(config))
