"""Corpus -> published RETRO dataset. Wiring only: the work is in the stages, the decisions in the plugin."""

from datetime import timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, TriggerRule, task_group
from retro_airflow import params, settings, tasks
from retro_airflow.stage_operator import StageOperator

DOC = """
### Build a RETRO dataset

Turns documents (JSON lines with a `text` field) into token chunks, embeddings, a faiss index and the
nearest neighbours of every chunk, and publishes them as a version of a dataset.

**To run it:** press *Trigger*, give the dataset a name, say where the documents are, choose a preset.

**If a shard fails:** the others finish, and the log of `gate` names the shard and its map index. Clear
that map index with its downstream tasks; what is done already takes seconds. Or trigger again with
*Go on without failed shards*.

**If a worker dies:** the retry finds the stage that still runs and watches it to its end.
"""

config = settings.load()

with DAG(
    "retro_dataset",
    description="Documents to a published RETRO dataset: chunks, embeddings, index, neighbours",
    doc_md=DOC,
    schedule=None,
    catchup=False,
    max_active_runs=4,
    # The default of 16 would serialise the shards; pools and the executor's parallelism are the limits.
    max_active_tasks=128,
    default_args={
        "owner": "retro",
        "retries": 3,
        "retry_delay": config.retry_delay,
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
    },
    params=params.form(config),
    render_template_as_native_obj=False,
    tags=["retro"],
) as dag:
    shard_label = "shard {{ task.arguments['shard'] }}"

    plan = StageOperator(task_id="plan", stage="plan", arguments=params.plan_arguments)
    # The gate runs even if there is no plan, and says so.
    plan_uri = "{{ (ti.xcom_pull(task_ids='plan') or {}).get('plan', '') }}"

    @task_group(group_id="shards")
    def shards(arguments: dict[str, str]) -> None:
        """From documents to embeddings; each shard goes its own pace."""
        chunks = StageOperator(
            task_id="tokenize_and_chunk",
            stage="tokenize-and-chunk",
            arguments=arguments,
            map_index_template=shard_label,
        )
        embeddings = StageOperator(
            task_id="embed_chunks",
            stage="embed-chunks",
            arguments=arguments,
            pool=config.gpu_pool,
            map_index_template=shard_label,
        )
        chunks >> embeddings

    list_shards = PythonOperator(
        task_id="list_shards", python_callable=tasks.list_shards, op_kwargs={"plan_uri": plan_uri}
    )
    gate = PythonOperator(
        task_id="gate",
        python_callable=tasks.gate,
        op_kwargs={"plan_uri": plan_uri},
        trigger_rule=TriggerRule.ALL_DONE,
    )
    kept = {"plan": "{{ ti.xcom_pull(task_ids='gate') }}"}
    list_kept_shards = PythonOperator(
        task_id="list_kept_shards", python_callable=tasks.list_shards, op_kwargs={"plan_uri": kept["plan"]}
    )

    train = StageOperator(task_id="train_faiss_index", stage="train-faiss-index", arguments=kept, pool=config.gpu_pool)
    build = StageOperator.partial(
        task_id="build_faiss_index", stage="build-faiss-index", pool=config.gpu_pool, map_index_template=shard_label
    ).expand(arguments=list_kept_shards.output)
    merge = StageOperator(task_id="merge_indexes", stage="merge-indexes", arguments=kept)
    tune = StageOperator(task_id="tune_search", stage="tune-search", arguments=kept, pool=config.gpu_pool)
    retrieve = StageOperator.partial(
        task_id="retrieve_neighbours",
        stage="retrieve-neighbours",
        pool=config.gpu_pool,
        map_index_template=shard_label,
    ).expand(arguments=list_kept_shards.output)
    write_specs = StageOperator(task_id="write_specs", stage="write-specs", arguments=kept)
    describe = StageOperator(task_id="describe", stage="describe", arguments=kept)
    validate = StageOperator(task_id="validate", stage="validate", arguments=kept)
    publish = StageOperator(
        task_id="publish",
        stage="publish",
        arguments=kept,
        outlets=[tasks.DATASETS],
        post_execute=tasks.announce_dataset,
    )

    plan >> list_shards
    shards.expand(arguments=list_shards.output) >> gate
    gate >> list_kept_shards
    gate >> train >> build >> merge >> tune >> retrieve >> write_specs >> describe >> validate >> publish
