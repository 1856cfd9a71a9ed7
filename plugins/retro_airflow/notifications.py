"""Tells people about runs: notifiers of any provider, as `[[notifications]]` in runtime.toml lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow.sdk import Context, DeadlineAlert, DeadlineReference, SyncCallback  # type: ignore[attr-defined]
from airflow.sdk.module_loading import import_string  # type: ignore[attr-defined]

from retro_airflow import failures, links
from retro_airflow.deployment import Deployment


@dataclass(frozen=True)
class NotifierCall:
    """Calls a notifier with Airflow's context, to which it adds ``failure`` (the message of the failed run) and
    ``page`` (address of the run in Airflow)."""

    notifier: str
    arguments: Mapping[str, Any]

    def __call__(self, context: Context) -> None:
        run = context.get("dag_run")
        page = links.absolute(f"{links.prefix()}/dags/{run.dag_id}/runs/{run.run_id}") if run else ""
        import_string(self.notifier)(**self.arguments)({**context, "failure": _failure(context), "page": page})


def _failure(context: Context) -> str:
    """What the first failed task said. The gate comes after others, since its message may only name an earlier task;
    mapped tasks come last, since of shards the gate names all that failed."""
    if "ti" not in context:
        return str(context.get("reason") or "")
    every = context["dag"].tasks
    mapped = {task.task_id for task in every if task.is_mapped or task.get_closest_mapped_task_group()}
    for name in sorted((task.task_id for task in every), key=lambda name: (name in mapped, name == "gate")):
        said = context["ti"].xcom_pull(task_ids=name, key=failures.CAUSE)
        if found := [said] if isinstance(said, str) else [text for text in said or () if text]:
            return str(found[0])
    return str(context.get("reason") or "")


def dag_arguments(deployment: Deployment) -> dict[str, Any]:
    """Callbacks and deadline of a DAG."""
    listed: dict[str, list[NotifierCall]] = {"failure": [], "success": []}
    for entry in deployment.notifications:
        for event in entry.on:
            if event != "deadline":
                listed[event].append(NotifierCall(entry.notifier, entry.arguments))
    arguments: dict[str, Any] = {f"on_{event}_callback": found for event, found in listed.items() if found}
    if deployment.deadline_minutes is not None:
        arguments["deadline"] = [
            DeadlineAlert(
                reference=DeadlineReference.DAGRUN_QUEUED_AT,
                interval=timedelta(minutes=deployment.deadline_minutes),
                callback=SyncCallback(entry.notifier, kwargs=dict(entry.arguments)),
            )
            for entry in deployment.notifications
            if "deadline" in entry.on
        ]
    return arguments
