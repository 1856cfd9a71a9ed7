"""From a plan to a published version: the tasks that all DAGs of this package share, and their dependencies."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator, ShortCircuitOperator
from airflow.sdk import DAG, Param, TaskGroup, TriggerRule, task_group
from airflow.sdk.definitions.param import ParamsDict

from retro_airflow import approval, mapped_tasks, notifications, tasks
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


GROUPS = {
    "sources": "With a recipe: list its files and split them into shards",
    "duplicates": "If duplicates or benchmarks are requested: find documents that repeat others or contain benchmark "
    "texts",
    "samples": "If the index is large: find the true neighbours of the sampled queries part by part",
    "index": "Train, fill and merge the faiss index",
    "cells": "If the vectors do not fit on the GPUs of a worker: search them part by part",
    "neighbours": "Tune the search and retrieve the neighbours of every chunk",
    "publish": "Write the specs, measure, validate, wait for approval if that is on, and publish the version",
}
"""What the tasks of each group do. In Airflow a group is a row that can be opened."""

FILTERS = {"group_label": group_label}
SHARD_LABEL = "{{ task.arguments['shard'] | group_label('shard') }}"
PART_LABEL = "{{ task.arguments['part'] | group_label('part') }}"
CELL_LABEL = "{{ task.arguments['cell'] | group_label('cell') }}"
FILE_LABEL = "{{ task.arguments['file'] | group_label('file') }}"

# Empty without a plan: the gate runs even then, and reports it.
PLANNED_URI = "{{ (ti.xcom_pull(task_ids='plan') or {}).get('plan', '') }}"
PLAN_URI = (
    "{{ (ti.xcom_pull(task_ids='duplicates.find_duplicates') or ti.xcom_pull(task_ids='plan') or {}).get('plan', '') }}"
)
"""The plan of `find_duplicates`, if that task ran."""


def dag_arguments(config: Settings) -> dict[str, Any]:
    """Arguments that all DAGs share."""
    return {
        "catchup": False,
        # The default of 16 would serialise the shards; pools and the executor's parallelism are the limits.
        "max_active_tasks": 128,
        "default_args": {
            "owner": "retro",
            "retries": config.retries,
            "retry_delay": config.retry_delay,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=10),
        },
        "render_template_as_native_obj": False,
        "user_defined_filters": FILTERS,
        "tags": ["retro"],
        **notifications.dag_arguments(config.deployment),
    }


def add_form(dag: DAG, form: Mapping[str, Param]) -> None:
    """Give ``dag`` its parameters once it has its tasks, which read them from the DAG.

    Airflow copies into a task those that the DAG has when the task is made. Whenever the file is parsed it checks each
    copy against its schema several times, which took nine tenths of the time of a parse.
    """
    assert dag.tasks
    dag.params = ParamsDict(form)


def stage(name: str, config: Settings) -> dict[str, Any]:
    """Arguments of the operator that follow from the table of stages and from runtime.toml."""
    placement = config.deployment.placement_of(name, config.gpu_pool if STAGES[name].gpu else None)
    return {"task_id": name.replace("-", "_"), "stage": name, "doc_md": stage_doc(name), **placement}


def stage_doc(name: str) -> str:
    """What a stage does and how to run it by hand, as Airflow shows it beside the task."""
    row = STAGES[name]
    flags = {
        "file": " --sources SOURCES --file FILE",
        "cell": " --plan PLAN --cell CELL",
        "part": " --plan PLAN --part PART",
        "shard": " --plan PLAN --shard SHARD",
    }
    arguments = " ..." if row.marker == "output" else flags.get(row.maps_over or "", " --plan PLAN")
    by_hand = f"retro-ops {name}{arguments}"
    mapped = f" It runs for each {row.maps_over}, or for a group of them." if row.maps_over else ""
    return (
        f"{row.help[0].upper()}{row.help[1:]}.{mapped}\n\n"
        f"By hand: `{by_hand}`. *Rendered Templates* and the first line of the log show the whole command. "
        "Finished work is never repeated, so the task can be cleared at any time."
    )


def _group(name: str) -> TaskGroup:
    return TaskGroup(name, tooltip=GROUPS[name])


def from_recipe(plan: StageOperator, arguments: Callable[..., Arguments], config: Settings) -> None:
    """Add the tasks that come before the plan if a run has a recipe: list its files, and split them into shards.

    ``arguments``: those of ``list-sources``. If they are empty, that task and the others added here are skipped.
    """
    with _group("sources"):
        list_sources = StageOperator(**stage("list-sources", config), arguments=arguments)
        list_source_files = PythonOperator(
            task_id="list_source_files",
            python_callable=mapped_tasks.list_source_files,
            op_kwargs={"sources_uri": "{{ ti.xcom_pull(task_ids='sources.list_sources')['sources'] }}"},
            doc_md=mapped_tasks.list_source_files.__doc__,
        )
        split_corpus = StageOperator.partial(**stage("split-corpus", config), map_index_template=FILE_LABEL).expand(
            arguments=list_source_files.output
        )
    plan.trigger_rule = TriggerRule.NONE_FAILED
    list_sources >> list_source_files >> split_corpus >> plan


def build(plan: StageOperator, config: Settings) -> None:
    """Add all tasks after the plan, for every shard."""
    anything_to_do = _anything_to_do(tasks.goes_beyond_plan)
    list_shards = _listed(mapped_tasks.list_shards, "list_shards", PLAN_URI, "embed-chunks")
    gate = _gate(list_shards)
    kept = {"plan": "{{ ti.xcom_pull(task_ids='gate') }}"}
    list_parts, search_samples = _samples(config, kept)
    to_index, train, build_index, merge = _index(config, kept, mapped_tasks.list_shards)
    to_query, tune, retrieve = _neighbours(config, kept, mapped_tasks.list_shards_to_query)
    list_cells = _cells(config, kept, tune, retrieve)
    to_validate, write_specs = _publish(config, kept, changed_only=False)
    plan >> anything_to_do
    _duplicates(anything_to_do, list_shards, config)
    _shards(config).expand(arguments=list_shards.output) >> gate
    gate >> [list_parts, to_index, to_query, train]
    # A grid needs no merged index, so its search does not wait for the one task that merges the partial ones.
    merge.trigger_rule = TriggerRule.NONE_FAILED
    tune.trigger_rule = TriggerRule.ONE_SUCCESS
    build_index >> list_cells
    search_samples >> [merge, list_cells] >> tune
    # Rows that a filter leaves short are searched in the merged index.
    merge >> retrieve >> write_specs
    retrieve >> to_validate


def update(plan: StageOperator, config: Settings, check_drift: bool) -> None:
    """Add all tasks after the plan, only for unfinished shards. If there is nothing to do, all are skipped."""
    anything_to_do = _anything_to_do(tasks.anything_to_do)
    list_shards = _listed(mapped_tasks.list_unfinished_shards, "list_shards", PLAN_URI, "embed-chunks")
    gate = _gate(list_shards)
    kept = {"plan": "{{ ti.xcom_pull(task_ids='gate') }}"}
    decide: PythonOperator | StageOperator = gate
    if check_drift:
        decide = StageOperator(**stage("check-drift", config), arguments=kept)
        gate >> decide
        kept = {"plan": "{{ ti.xcom_pull(task_ids='check_drift')['plan'] }}"}
    list_parts, search_samples = _samples(config, kept)
    to_index, train, _, merge = _index(config, kept, mapped_tasks.list_unfinished_shards)
    to_query, tune, retrieve = _neighbours(config, kept, mapped_tasks.list_unfinished_shards)
    to_validate, write_specs = _publish(config, kept, changed_only=check_drift)
    # A list of shards may be empty, so the tasks that map over it may be skipped.
    merge.trigger_rule = to_validate.trigger_rule = write_specs.trigger_rule = TriggerRule.NONE_FAILED
    plan >> anything_to_do
    _duplicates(anything_to_do, list_shards, config)
    _shards(config).expand(arguments=list_shards.output) >> gate
    decide >> [list_parts, to_index, to_query, train]
    [merge, search_samples] >> tune
    retrieve >> [to_validate, write_specs]


def _anything_to_do(which: Callable[..., bool]) -> ShortCircuitOperator:
    return ShortCircuitOperator(
        task_id="anything_to_do",
        python_callable=which,
        op_kwargs={"plan_uri": PLANNED_URI},
        doc_md=which.__doc__,
    )


def _duplicates(before: Any, list_shards: PythonOperator, config: Settings) -> None:
    """Add the tasks between the plan and its shards. If no documents are compared, all but the first are skipped."""
    with _group("duplicates"):
        look_for_duplicates = ShortCircuitOperator(
            task_id="look_for_duplicates",
            python_callable=tasks.look_for_duplicates,
            op_kwargs={"plan_uri": PLANNED_URI},
            # Skips only the next two tasks: the shards are built in any case.
            ignore_downstream_trigger_rules=False,
            doc_md=tasks.look_for_duplicates.__doc__,
        )
        to_sign = _listed(mapped_tasks.list_unfinished_shards, "list_shards_to_sign", PLANNED_URI, "sign-documents")
        sign_documents = StageOperator.partial(
            **stage("sign-documents", config), map_index_template=SHARD_LABEL
        ).expand(arguments=to_sign.output)
        find_duplicates = StageOperator(
            **stage("find-duplicates", config),
            arguments={"plan": PLANNED_URI},
            trigger_rule=TriggerRule.NONE_FAILED,  # The shards may all be signed.
        )
    list_shards.trigger_rule = TriggerRule.NONE_FAILED
    before >> look_for_duplicates >> [to_sign, find_duplicates]
    sign_documents >> find_duplicates >> list_shards


def _shards(config: Settings) -> Any:
    @task_group(group_id="shards")
    def shards(arguments: dict[str, str]) -> None:
        """From documents to embeddings, each shard at its own pace."""
        chunks = StageOperator(
            **stage("tokenize-and-chunk", config),
            arguments=arguments,
            map_index_template=SHARD_LABEL,
        )
        embeddings = StageOperator(
            **stage("embed-chunks", config),
            arguments=arguments,
            map_index_template=SHARD_LABEL,
            # In a group, the shards that could be tokenised are embedded; the stage names the others.
            trigger_rule=TriggerRule.ALL_DONE,
        )
        chunks >> embeddings

    return shards


def _listed(which: Callable[..., Any], task_id: str, plan_uri: str, stage: str) -> PythonOperator:
    return PythonOperator(
        task_id=task_id,
        python_callable=which,
        op_kwargs={"plan_uri": plan_uri, "stage": stage},
        doc_md=f"Lists the shards of `{stage}`: a task for each, or for a group of them.",
    )


def _gate(list_shards: PythonOperator) -> PythonOperator:
    return PythonOperator(
        task_id="gate",
        python_callable=tasks.gate,
        op_kwargs={"plan_uri": PLAN_URI, "listed": list_shards.output},
        trigger_rule=TriggerRule.ALL_DONE,
        doc_md="Checks that every shard is embedded. If not, the run stops here, and the log names the shards and says "
        "what to do; with *Go on without failed shards* it continues without them.",
    )


Listing = Callable[..., Any]
"""Lists the shards of a stage: all of them, or those that are unfinished."""


def _samples(config: Settings, kept: dict[str, str]) -> tuple[PythonOperator, Any]:
    """The search of the samples in parts of the vectors; the task that waits for the gate, and the last one."""
    with _group("samples"):
        list_parts = PythonOperator(
            task_id="list_parts",
            python_callable=mapped_tasks.list_sample_parts,
            op_kwargs={"plan_uri": kept["plan"]},
            doc_md=mapped_tasks.list_sample_parts.__doc__,
        )
        search_samples = StageOperator.partial(**stage("search-samples", config), map_index_template=PART_LABEL).expand(
            arguments=list_parts.output
        )
    return list_parts, search_samples


def _index(config: Settings, kept: dict[str, str], which: Listing) -> tuple[Any, Any, Any, Any]:
    """From embeddings to the merged indexes; the tasks that wait for the gate, and the last two."""
    with _group("index"):
        to_index = _listed(which, "list_shards_to_index", kept["plan"], "build-faiss-index")
        train = StageOperator(**stage("train-faiss-index", config), arguments=kept)
        build_index = StageOperator.partial(
            **stage("build-faiss-index", config), map_index_template=SHARD_LABEL
        ).expand(arguments=to_index.output)
        merge = StageOperator(**stage("merge-indexes", config), arguments=kept)
        train >> build_index >> merge
    return to_index, train, build_index, merge


def _neighbours(config: Settings, kept: dict[str, str], which: Listing) -> tuple[Any, Any, Any]:
    """From indexes to neighbours; the task that waits for the gate, the first and the last one."""
    with _group("neighbours"):
        to_query = _listed(which, "list_shards_to_query", kept["plan"], "retrieve-neighbours")
        tune = StageOperator(
            **stage("tune-search", config),
            arguments=kept,
            trigger_rule=TriggerRule.NONE_FAILED,  # Of a small index no part is searched.
        )
        retrieve = StageOperator.partial(**stage("retrieve-neighbours", config), map_index_template=SHARD_LABEL).expand(
            arguments=to_query.output
        )
        tune >> retrieve
    return to_query, tune, retrieve


def _cells(config: Settings, kept: dict[str, str], tune: Any, retrieve: Any) -> PythonOperator:
    """Add the search of the cells of a grid between ``tune`` and ``retrieve``; the task that lists them."""
    with _group("cells"):
        list_cells = PythonOperator(
            task_id="list_cells",
            python_callable=mapped_tasks.list_cells,
            op_kwargs={"plan_uri": kept["plan"]},
            trigger_rule=TriggerRule.NONE_FAILED,  # Of a small index no part is searched.
            doc_md=mapped_tasks.list_cells.__doc__,
        )
        search_parts = StageOperator.partial(**stage("search-parts", config), map_index_template=CELL_LABEL).expand(
            arguments=list_cells.output
        )
    retrieve.trigger_rule = TriggerRule.NONE_FAILED  # Without a grid no cell is searched.
    tune >> search_parts >> retrieve
    return list_cells


def _publish(config: Settings, kept: dict[str, str], *, changed_only: bool) -> tuple[Any, Any]:
    """From neighbours to the published version; the two tasks that wait for the neighbours."""
    with _group("publish"):
        list_shards_to_validate = PythonOperator(
            task_id="list_shards_to_validate",
            python_callable=mapped_tasks.list_shards_to_validate,
            op_kwargs={"plan_uri": kept["plan"], "changed_only": changed_only},
            doc_md=mapped_tasks.list_shards_to_validate.__doc__,
        )
        validate_shards = StageOperator.partial(
            **stage("validate-shards", config), map_index_template=SHARD_LABEL
        ).expand(arguments=list_shards_to_validate.output)
        write_specs = StageOperator(**stage("write-specs", config), arguments=kept)
        price = config.deployment.gpu_hour_price
        describe = StageOperator(
            **stage("describe", config),
            arguments={**kept, "gpu-hour-price": None if price is None else str(price)},
        )
        validate = StageOperator(
            **stage("validate", config),
            arguments={**kept, "changed-only": changed_only},
            trigger_rule=TriggerRule.NONE_FAILED,  # Of a small corpus no shard is checked before.
        )
        publish = StageOperator(
            **stage("publish", config),
            arguments=kept,
            outlets=[tasks.DATASETS],
            post_execute=tasks.announce_dataset,
        )
        approve = approval.PublishApproval(task_id="approve", plan_uri=kept["plan"], doc_md=approval.DOC)
        write_specs >> describe >> validate >> approve >> publish
        validate_shards >> validate
    return list_shards_to_validate, write_specs
