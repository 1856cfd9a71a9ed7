"""What the status of a pod means for its stage."""

from datetime import UTC, datetime

from kubernetes.client import V1ContainerState, V1Pod
from kubernetes.utils import parse_quantity

from retro_airflow.runtimes import Status
from retro_ops.sizes import limit_in_words

CONTAINER = "stage"
"""Name of the container that the stage runs in."""

NODE_LOST_S = 60
"""Time after its deletion was due at which the node of a pod that is still there counts as lost."""

NO_COMPLAINT = frozenset({"ContainerCreating", "PodInitializing"})
"""Reasons for which every container waits. Any other is a problem: an image, a secret or a command that is missing."""


def status(pod: V1Pod, start_timeout_s: float) -> Status:
    phase, state, deleted = pod.status.phase, container_state(pod), pod.metadata.deletion_timestamp
    ended = state.terminated if state else None
    # Evicted, preempted, node shut down, deleted: the exit code of the container then says nothing about the stage.
    disturbed = pod.status.reason or _condition(pod, "DisruptionTarget", "True") or ("Deleted" if deleted else "")
    if (ended and ended.exit_code and disturbed) or (not ended and phase in ("Succeeded", "Failed")):
        why = ". ".join(filter(None, (disturbed or "no reason given", (pod.status.message or "").rstrip("."))))
        return Status("lost", reason=f"its pod was ended: {why}")
    if ended:
        reason = f"it ran out of memory (limit {_limit(pod)})" if ended.reason == "OOMKilled" else (ended.message or "")
        return Status("failed" if ended.exit_code else "succeeded", exit_code=ended.exit_code, reason=reason)
    if deleted and seconds_since(deleted) > NODE_LOST_S:
        return Status("lost", reason=f"its pod is being deleted ({disturbed}) and its node does not answer")
    if phase == "Running":
        return Status("running")
    waits = waits_for(pod)
    if phase == "Pending" and seconds_since(pod.metadata.creation_timestamp) > start_timeout_s:
        return Status("lost", reason=f"its pod did not start within {start_timeout_s:.0f} s: {waits}")
    return Status("running", reason=waits)


def complaint(pod: V1Pod) -> str | None:
    """Why the container of a pod on a node cannot start; None if it has started or nothing is wrong."""
    state = container_state(pod)
    reason = state.waiting.reason if pod.status.phase == "Pending" and state and state.waiting else None
    return None if reason in NO_COMPLAINT else reason


def waits_for(pod: V1Pod) -> str:
    state = container_state(pod)
    waiting = state.waiting if state else None
    if waiting:
        return ": ".join(filter(None, (waiting.reason, waiting.message)))
    return _condition(pod, "PodScheduled", "False") or f"its pod is {pod.status.phase}"


def _condition(pod: V1Pod, kind: str, value: str) -> str:
    """Reason and message of the pod's condition ``kind`` if its status is ``value``, else an empty string."""
    for condition in pod.status.conditions or ():
        if condition.type == kind and condition.status == value:
            return ": ".join(filter(None, (condition.reason, condition.message))) or kind
    return ""


def container_state(pod: V1Pod) -> V1ContainerState | None:
    """State of the container of the stage; other containers may run longer."""
    return next((entry.state for entry in pod.status.container_statuses or () if entry.name == CONTAINER), None)


def _limit(pod: V1Pod) -> str:
    resources = pod.spec.containers[0].resources
    limits = (resources.limits if resources else None) or {}
    return limit_in_words(float(parse_quantity(limits["memory"]))) if "memory" in limits else "that of its node"


def seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
