"""Rebuilds damaged, missing or named shards of a RETRO dataset, and what depends on them. Wiring only."""

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments
from retro_airflow.stage_operator import StageOperator

DOC = """
### Repair a RETRO dataset

Checks every file of the published version (or of a failed run), rebuilds missing and damaged files and all that
depends on them, and publishes the result as the next version. Damaged files stay in place for readers of the old
version, but no later version uses them.

**A shard that succeeded but is wrong:** enter its name under *Shards*; it is rebuilt even if its files are intact.

**A failed run:** enter its run id; shards that failed or were left out are built, all others are reused.

If nothing is damaged or missing, everything after `anything_to_do` is skipped.
"""

config = settings.load()

with DAG(
    "retro_repair",
    description="Rebuild damaged, missing or named shards of a RETRO dataset",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(**pipeline.stage("plan", config), arguments=stage_arguments.repair_arguments)
    pipeline.update(plan, config, check_drift=False)
    pipeline.add_form(dag, forms.repair_form(config))
