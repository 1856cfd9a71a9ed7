"""Current states of tasks. Airflow tells them only to a running task."""

from typing import Any

from retro_airflow.runtimes import Task

STARTING_OR_RUNNING = frozenset({None, "scheduled", "queued", "running", "up_for_retry"})
"""States of a task with a try that runs or is about to. Not `restarting`: clearing a running task ends its stage."""

UNDECIDED = frozenset({"deferred", "restarting", "up_for_reschedule"})
"""States in which a task has no process but may come back to its job."""


def is_one_of(states: frozenset[str | None], ti: Any, task: Task) -> bool:
    """Whether ``task`` exists and is in one of ``states``. ``ti``: the task instance that runs this."""
    found = ti.get_task_states(
        dag_id=task.dag_id, run_ids=[task.run_id], task_ids=[task.task_id], map_index=task.map_index
    )
    return any(state in states for state in found.get(task.run_id, {}).values())
