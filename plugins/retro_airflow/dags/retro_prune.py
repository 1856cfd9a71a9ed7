"""Lists, and on request removes, versions and files of a RETRO dataset that are no longer used. Wiring only."""

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments
from retro_airflow.stage_operator import StageOperator

DOC = """
### Prune a RETRO dataset

Lists the files that only old versions or finished runs use, with their sizes, in the log. With *Remove* it also removes
them; those versions cannot be read or rolled back to afterwards. The newest versions and the current one are kept.

A run that wrote nothing for two days counts as finished. Do not prune while a run is being planned.
"""

config = settings.load()

with DAG(
    "retro_prune",
    description="List or remove unused versions and files of a RETRO dataset",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    **pipeline.dag_arguments(config),
) as dag:
    StageOperator(task_id="prune", stage="prune", arguments=stage_arguments.prune_arguments, doc_md=DOC)
    pipeline.add_form(dag, forms.prune_form(config))
