"""Published RETRO dataset + current corpus -> its next version. Wiring only."""

from datetime import UTC, datetime

from airflow.sdk import DAG

from retro_airflow import forms, pipeline, settings, stage_arguments, watching
from retro_airflow.stage_operator import StageOperator

DOC = """
### Refresh a RETRO dataset

Compares the content of the corpus with that of the published version, builds only shards that were added or changed,
extends the index, brings the neighbours of all other chunks up to date, and publishes the next version. If nothing
changed, everything after `anything_to_do` is skipped and nothing is published.

**Every night:** set `RETRO_REFRESH_SCHEDULE` (a cron expression), `RETRO_ROOT` and `RETRO_DATASET` where Airflow runs,
and unpause this DAG. Without a published version the first run builds one from `RETRO_CORPUS`.

**When files change:** set `RETRO_REFRESH_WATCH` to the folders of the corpus. New, changed or removed files start a run
within a minute.

**Single days:** with `{date}` in the corpus, a run reads the files up to its day, so past days can be backfilled:
`airflow backfill create --dag-id retro_refresh --from-date 2026-03-02 --to-date 2026-03-08T23:59 --max-active-runs 1`.

**If a shard fails:** fix the cause and clear its map index with its downstream tasks, as for `retro_dataset`.
"""

config = settings.load()

with DAG(
    "retro_refresh",
    description="Bring a published RETRO dataset up to date with its corpus",
    doc_md=DOC,
    # The logical date is the day whose files are complete when the run starts.
    schedule=watching.schedule(config),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),
    # Each run starts from the version that the previous run published.
    max_active_runs=1,
    **pipeline.dag_arguments(config),
) as dag:
    plan = StageOperator(**pipeline.stage("plan", config), arguments=stage_arguments.refresh_arguments)
    pipeline.from_recipe(plan, stage_arguments.refresh_sources_arguments, config)
    pipeline.update(plan, config, check_drift=True)
    pipeline.add_form(dag, forms.refresh_form(config))
