"""Corpus -> published RETRO dataset. Wiring only: the work is in the stages, the decisions in the plugin."""

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments
from retro_airflow.stage_operator import StageOperator

DOC = """
### Build a RETRO dataset

Turns documents (JSON lines or Parquet) into token chunks, embeddings, a faiss index and the nearest neighbours of every
chunk, and publishes them as a version of a dataset.

**To run it:** press *Trigger*, give the dataset a name, enter where the documents are, and choose a preset. *Plan only*
checks your input, estimates chunks and time, and then stops. If files hold documents of several kinds, or are archives,
enter a recipe instead of a corpus.

**If a shard fails:** the others finish, and the log of `gate` names the shard and its map index. Fix the cause and
clear that map index with its downstream tasks; finished work is reused. Or trigger again with *Go on without failed
shards*.

**If a worker dies:** the retry finds the stage, which is still running, and watches it until it ends.
"""

config = settings.load()

with DAG(
    "retro_dataset",
    description="Build and publish a RETRO dataset from documents: chunks, embeddings, index, neighbours",
    doc_md=DOC,
    schedule=None,
    max_active_runs=4,
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(**pipeline.stage("plan", config), arguments=stage_arguments.plan_arguments)
    pipeline.from_recipe(plan, stage_arguments.sources_arguments, config)
    pipeline.build(plan, config)
    pipeline.add_form(dag, forms.form(config))
