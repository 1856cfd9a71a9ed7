"""Damaged, missing or named shards of a RETRO dataset -> built again, with only what depends on them. Wiring only."""

from airflow.sdk import DAG

from retro_airflow import params, pipeline, settings
from retro_airflow.stage_operator import StageOperator

DOC = """
### Repair a RETRO dataset

Looks at every file of the published version (or of a run that failed), builds again what is missing or not what its
stage wrote, and what depends on it, and publishes the result as the next version. The files that were found damaged
stay where they are, for whoever reads the old version; nothing uses them again.

**A shard that is green but wrong:** name it under *Shards*, and it is built again whatever its files hold.

**A run that failed:** give its run id; shards that failed or were left out are built, the rest is used as it is.

If nothing is wrong, everything after `anything_to_do` is skipped.
"""

config = settings.load()

with DAG(
    "retro_repair",
    description="Build again what of a RETRO dataset is damaged, missing or named",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    params=params.repair_form(config),
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(task_id="plan", stage="plan", arguments=params.repair_arguments)
    pipeline.update(plan, config, check_drift=False)
