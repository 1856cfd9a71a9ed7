"""What Airflow says of a task now. Asked through the task that runs, so only within one."""

from typing import Any

from retro_airflow.runtimes import Task

STARTING_OR_RUNNING = frozenset({None, "scheduled", "queued", "running", "up_for_retry"})
"""States of a task that a try is under way for. Not `restarting`: who clears a running task wants it ended."""

UNDECIDED = frozenset({"deferred", "restarting", "up_for_reschedule"})
"""States in which a task has no process but may come back to its job."""


def is_one_of(states: frozenset[str | None], ti: Any, task: Task) -> bool:
    """Whether ``task`` exists and is in one of ``states``; ``ti`` is the task instance that asks."""
    found = ti.get_task_states(
        dag_id=task.dag_id, run_ids=[task.run_id], task_ids=[task.task_id], map_index=task.map_index
    )
    return any(state in states for state in found.get(task.run_id, {}).values())
