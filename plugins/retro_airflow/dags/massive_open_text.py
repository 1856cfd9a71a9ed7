"""The Pile and RealNews -> MassiveOpenText, published. Wiring only: ``retro_dataset`` with the recipe filled in."""

from airflow.sdk import DAG

from retro_airflow import params, pipeline, settings
from retro_airflow.stage_operator import StageOperator

DOC = """
### Build MassiveOpenText

Wikipedia, GitHub, Pile-CC, Books3 and RealNews: 30 training shards of each and one for validation, named as in the
original, from files as their owners hand them out: `Pile/train/00.jsonl.zst` to `29`, `Pile/val.jsonl.zst`,
`RealNews/realnews.tar.gz`. Each is read and decompressed once. What is not there is left out, and the logs of
`list_sources` and `plan` say what.

**To run it:** press *Trigger* and say where `Pile/` and `RealNews/` lie. `retro-ops export` writes the published
version under the original's file names.

**Something else:** other shards to query, a part of the categories, smaller shards: copy the recipe, change it, and
name it under *Recipe*. `retro_refresh` of the dataset goes by the same recipe.
"""

config = settings.load()

with DAG(
    "massive_open_text",
    description="The Pile and RealNews to MassiveOpenText: retro_dataset with its recipe",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    params=params.massive_open_text_form(config),
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(task_id="plan", stage="plan", arguments=params.plan_arguments)
    pipeline.from_recipe(plan, params.sources_arguments)
    pipeline.build(plan, config)
