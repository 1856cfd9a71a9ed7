"""The Pile and RealNews -> MassiveOpenText, published. Wiring only: ``retro_dataset`` with the recipe filled in."""

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments
from retro_airflow.stage_operator import StageOperator

DOC = """
### Build MassiveOpenText

Wikipedia, GitHub, Pile-CC, Books3 and RealNews: 30 training shards of each and one for validation, named as in the
original, from the files as their owners distribute them: `Pile/train/00.jsonl.zst` to `29`, `Pile/val.jsonl.zst`,
`RealNews/realnews.tar.gz`. Each is read and decompressed once. Missing files are left out and listed in the logs of
`sources.list_sources` and `plan`.

**To run it:** press *Trigger* and enter the folder that holds `Pile/` and `RealNews/`. `retro-ops export` writes the
published version under the original's file names.

**To change it** (other queried shards, fewer categories, smaller shards): copy the recipe, edit the copy, and enter its
path under *Recipe*. `retro_refresh` uses the recipe of the published version.
"""

config = settings.load()

with DAG(
    "massive_open_text",
    description="Build MassiveOpenText from The Pile and RealNews: retro_dataset with its recipe",
    doc_md=DOC,
    schedule=None,
    max_active_runs=1,
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(**pipeline.stage("plan", config), arguments=stage_arguments.plan_arguments)
    pipeline.from_recipe(plan, stage_arguments.sources_arguments, config)
    pipeline.build(plan, config)
    pipeline.add_form(dag, forms.massive_open_text_form(config))
