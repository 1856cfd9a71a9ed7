"""From a plan to a published version: the tasks that all DAGs of this package share, and their dependencies."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator, ShortCircuitOperator
from airflow.sdk import TriggerRule, task_group

from retro_airflow import tasks
from retro_airflow.settings import Settings
from retro_airflow.stage_operator import Arguments, StageOperator
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.stage_graph import STAGES


def group_label(listed: str, kind: str) -> str:
    """Label of a mapped task for the shards or files (``kind``) in ``listed``, which are separated by commas.

    At most 250 characters, the width of Airflow's column.
    """
    names = split_names(listed)
    if len(names) == 1:
        return f"{kind} {_cut(names[0], 240)}"
    return f"{kind}s {_cut(names[0], 110)} to {_cut(names[-1], 110)} ({len(names)})"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


FILTERS = {"group_label": group_label}
SHARD_LABEL = "{{ task.arguments['shard'] | group_label('shard') }}"
CELL_LABEL = "{{ task.arguments['cell'] | group_label('cell') }}"
FILE_LABEL = "{{ task.arguments['file'] | group_label('file') }}"

# Empty without a plan: the gate runs even then, and reports it.
PLANNED_URI = "{{ (ti.xcom_pull(task_ids='plan') or {}).get('plan', '') }}"
PLAN_URI = "{{ (ti.xcom_pull(task_ids='find_duplicates') or ti.xcom_pull(task_ids='plan') or {}).get('plan', '') }}"
"""The plan of `find_duplicates`, if that task ran."""


def dag_arguments(config: Settings) -> dict[str, Any]:
    """Arguments that all DAGs share."""
    return {
        "catchup": False,
        # The default of 16 would serialise the shards; pools and the executor's parallelism are the limits.
        "max_active_tasks": 128,
        "default_args": {
            "owner": "retro",
            "retries": 3,
            "retry_delay": config.retry_delay,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=10),
        },
        "render_template_as_native_obj": False,
        "user_defined_filters": FILTERS,
        "tags": ["retro"],
    }


def _stage(name: str, config: Settings | None = None) -> dict[str, Any]:
    """Arguments of the operator that follow from the table of stages. ``config``: given if the stage may use a GPU."""
    pool = {"pool": config.gpu_pool} if config and STAGES[name].gpu else {}
    return {"task_id": name.replace("-", "_"), "stage": name, **pool}


def from_recipe(plan: StageOperator, arguments: Callable[..., Arguments]) -> None:
    """Add the tasks that come before the plan if a run has a recipe: list its files, and split them into shards.

    ``arguments``: those of ``list-sources``. If they are empty, that task and the others added here are skipped.
    """
    list_sources = StageOperator(**_stage("list-sources"), arguments=arguments)
    list_source_files = PythonOperator(
        task_id="list_source_files",
        python_callable=tasks.list_source_files,
        op_kwargs={"sources_uri": "{{ ti.xcom_pull(task_ids='list_sources')['sources'] }}"},
    )
    split_corpus = StageOperator.partial(**_stage("split-corpus"), map_index_template=FILE_LABEL).expand(
        arguments=list_source_files.output
    )
    plan.trigger_rule = TriggerRule.NONE_FAILED
    list_sources >> list_source_files >> split_corpus >> plan


def build(plan: StageOperator, config: Settings) -> None:
    """Add all tasks after the plan, for every shard."""
    list_shards = _listed(tasks.list_shards, "list_shards", PLAN_URI, "embed-chunks")
    gate = _gate(list_shards)
    kept = {"plan": "{{ ti.xcom_pull(task_ids='gate') }}"}
    to_index = _listed(tasks.list_shards, "list_shards_to_index", kept["plan"], "build-faiss-index")
    to_query, to_search = (
        PythonOperator(task_id=which.__name__, python_callable=which, op_kwargs={"plan_uri": kept["plan"]})
        for which in (tasks.list_shards_to_query, tasks.list_cells)
    )
    train, build_index, merge, tune, retrieve, write_specs = _index_tasks(
        config, kept, to_index.output, to_query.output
    )
    search_parts = StageOperator.partial(**_stage("search-parts", config), map_index_template=CELL_LABEL).expand(
        arguments=to_search.output
    )
    # Without a grid no cells are searched.
    retrieve.trigger_rule = TriggerRule.NONE_FAILED
    _duplicates(plan, list_shards)
    _shards(config).expand(arguments=list_shards.output) >> gate
    gate >> [to_index, to_query, to_search, train]
    train >> build_index >> merge >> tune >> search_parts >> retrieve >> write_specs
    tune >> retrieve
    _publish(config, write_specs, kept, {})


def update(plan: StageOperator, config: Settings, check_drift: bool) -> None:
    """Add all tasks after the plan, only for unfinished shards. If there is nothing to do, all are skipped."""
    anything_to_do = ShortCircuitOperator(
        task_id="anything_to_do", python_callable=tasks.anything_to_do, op_kwargs={"plan_uri": PLANNED_URI}
    )
    list_shards = _listed(tasks.list_unfinished_shards, "list_shards", PLAN_URI, "embed-chunks")
    gate = _gate(list_shards)
    kept = {"plan": "{{ ti.xcom_pull(task_ids='gate') }}"}
    decide: PythonOperator | StageOperator = gate
    if check_drift:
        decide = StageOperator(**_stage("check-drift"), arguments=kept)
        gate >> decide
        kept = {"plan": "{{ ti.xcom_pull(task_ids='check_drift')['plan'] }}"}
    of_stage = partial(_listed, tasks.list_unfinished_shards)
    to_index = of_stage("list_shards_to_index", kept["plan"], "build-faiss-index")
    to_query = of_stage("list_shards_to_query", kept["plan"], "retrieve-neighbours")
    train, build_index, merge, tune, retrieve, write_specs = _index_tasks(
        config, kept, to_index.output, to_query.output
    )
    # A list of shards may be empty, so the tasks that map over it may be skipped.
    merge.trigger_rule = write_specs.trigger_rule = TriggerRule.NONE_FAILED
    plan >> anything_to_do
    _duplicates(anything_to_do, list_shards)
    _shards(config).expand(arguments=list_shards.output) >> gate
    decide >> [to_index, to_query, train]
    train >> build_index >> merge >> tune >> retrieve >> write_specs
    _publish(config, write_specs, kept, {"changed-only": True} if check_drift else {})


def _duplicates(before: Any, list_shards: PythonOperator) -> None:
    """Add the tasks between the plan and its shards. If duplicates are kept, all but the first are skipped."""
    look_for_duplicates = ShortCircuitOperator(
        task_id="look_for_duplicates",
        python_callable=tasks.look_for_duplicates,
        op_kwargs={"plan_uri": PLANNED_URI},
        # Skips only the next two tasks: the shards are built in any case.
        ignore_downstream_trigger_rules=False,
    )
    list_shards_to_sign = _listed(tasks.list_unfinished_shards, "list_shards_to_sign", PLANNED_URI, "sign-documents")
    sign_documents = StageOperator.partial(**_stage("sign-documents"), map_index_template=SHARD_LABEL).expand(
        arguments=list_shards_to_sign.output
    )
    find_duplicates = StageOperator(
        **_stage("find-duplicates"),
        arguments={"plan": PLANNED_URI},
        trigger_rule=TriggerRule.NONE_FAILED,  # The shards may all be signed.
    )
    list_shards.trigger_rule = TriggerRule.NONE_FAILED
    before >> look_for_duplicates >> [list_shards_to_sign, find_duplicates]
    sign_documents >> find_duplicates >> list_shards


def _shards(config: Settings) -> Any:
    @task_group(group_id="shards")
    def shards(arguments: dict[str, str]) -> None:
        """From documents to embeddings, each shard at its own pace."""
        chunks = StageOperator(
            **_stage("tokenize-and-chunk", config),
            arguments=arguments,
            map_index_template=SHARD_LABEL,
        )
        embeddings = StageOperator(
            **_stage("embed-chunks", config),
            arguments=arguments,
            map_index_template=SHARD_LABEL,
            # In a group, the shards that could be tokenised are embedded; the stage names the others.
            trigger_rule=TriggerRule.ALL_DONE,
        )
        chunks >> embeddings

    return shards


def _listed(which: Callable[..., Any], task_id: str, plan_uri: str, stage: str) -> PythonOperator:
    return PythonOperator(task_id=task_id, python_callable=which, op_kwargs={"plan_uri": plan_uri, "stage": stage})


def _gate(list_shards: PythonOperator) -> PythonOperator:
    return PythonOperator(
        task_id="gate",
        python_callable=tasks.gate,
        op_kwargs={"plan_uri": PLAN_URI, "listed": list_shards.output},
        trigger_rule=TriggerRule.ALL_DONE,
    )


def _index_tasks(config: Settings, kept: dict[str, str], to_index: Any, to_query: Any) -> tuple[Any, ...]:
    """The tasks from embeddings to specs, without their dependencies."""
    train = StageOperator(**_stage("train-faiss-index", config), arguments=kept)
    build_index = StageOperator.partial(**_stage("build-faiss-index", config), map_index_template=SHARD_LABEL).expand(
        arguments=to_index
    )
    merge = StageOperator(**_stage("merge-indexes", config), arguments=kept)
    tune = StageOperator(**_stage("tune-search", config), arguments=kept)
    retrieve = StageOperator.partial(
        **_stage("retrieve-neighbours", config),
        map_index_template=SHARD_LABEL,
    ).expand(arguments=to_query)
    write_specs = StageOperator(**_stage("write-specs", config), arguments=kept)
    return train, build_index, merge, tune, retrieve, write_specs


def _publish(config: Settings, write_specs: Any, kept: dict[str, str], of_validation: dict[str, bool]) -> None:
    describe = StageOperator(**_stage("describe", config), arguments=kept)
    validate = StageOperator(**_stage("validate", config), arguments={**kept, **of_validation})
    publish = StageOperator(
        **_stage("publish", config),
        arguments=kept,
        outlets=[tasks.DATASETS],
        post_execute=tasks.announce_dataset,
    )
    write_specs >> describe >> validate >> publish
