"""Stages as pods. What all of them share is in the pod template; what a job adds is here.

The API server is the only memory: a pod's name is the job's, so a second submission finds the first; its
annotations say which task it belongs to; its exit code and log stay until ``forget``.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.sdk.exceptions import AirflowNotFoundException
from kubernetes.client import ApiException, CoreV1Api, V1ContainerState, V1Pod
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from retro_airflow.deployment import Kubernetes, Resources
from retro_airflow.runtimes import Handle, Job, Position, Status
from retro_airflow.runtimes.stamped_logs import read_on
from retro_ops.errors import EXIT_CONFIGURATION, ConfigurationError, TransientError
from retro_ops.sizes import parse_bytes

CONTAINER = "stage"

DEPLOYMENT_LABEL = "retro-ops/deployment"
STAGE_LABEL = "retro-ops/stage"
TASK_ANNOTATION = "retro-ops/task"

GRACE_S = 3
"""Between SIGTERM and SIGKILL. Airflow gives on_kill 5 s before it kills the task process itself."""

SUBMIT_TRIES = 60
SUBMIT_PAUSE_S = 0.5

CLOCK_SKEW_S = 60
"""How far a node's clock may be from the worker's: logs are asked for by age."""

NODE_LOST_S = 60
"""How long after the time of its deletion a pod may still be there, before its node counts as lost."""

NEVER_STARTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""What a container waits for in vain: somebody has to mend the deployment first."""

NO_COMPLAINT = frozenset({"ContainerCreating", "PodInitializing"})
"""What a container waits for as a matter of course; all else is a complaint, which may pass or last."""

NODE_SILENT = frozenset({500, 502, 503, 504})
"""How the API server answers for a log on a node that it cannot reach."""

_UNFIT = "mend the pod template, or `resources` in runtime.toml"
_MEANING = {
    400: _UNFIT,
    401: "the cluster does not know who asks: see the service account or the connection",
    403: "give the worker's service account the role in deploy/kubernetes/rbac.yaml",
    404: "create the namespace, or mend `kubernetes.namespace` in runtime.toml",
    422: _UNFIT,
}


class KubernetesRuntime:
    """``deployment`` tells the pods of several Airflows in one namespace apart."""

    def __init__(self, settings: Kubernetes, deployment: str) -> None:
        self._settings = settings
        self._deployment = deployment

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Without the template's environment: who runs it by hand gives the keys of the object store himself."""
        where = ["--namespace", self._settings.namespace, "--image", self._settings.image]
        return ["kubectl", "run", arguments[0], "--rm", "-it", "--restart=Never", *where, "--", *arguments]

    def submit(self, job: Job) -> Handle:
        pod = self.pod(job)
        with self._api_errors("create pods"):
            for _ in range(SUBMIT_TRIES):
                try:
                    return self._handle(self._client.create_namespaced_pod(self._settings.namespace, pod))
                except ApiException as error:
                    if error.status != 409:
                        raise
                # The name is taken: by the job itself, by its earlier try, or by a pod that is being deleted.
                found = self._read(job.name)
                if found is not None and found.metadata.deletion_timestamp is None:
                    if found.status.phase in ("Pending", "Running"):
                        return self._handle(found)
                    self._delete(job.name, found.metadata.uid)
                time.sleep(SUBMIT_PAUSE_S)
        by_hand = f"kubectl -n {self._settings.namespace} delete pod {job.name} --force"
        raise TransientError(
            f"pod {job.name} is being deleted and does not go", f"run again; if its node is lost for good: {by_hand}"
        )

    def status(self, handle: Handle) -> Status:
        with self._api_errors("get pods"):
            pod = self._pod_of(handle)
        if pod is None:
            return Status("lost", reason=f"pod {handle['name']} was deleted")
        return _status(pod, self._settings.start_timeout_s)

    def logs(self, handle: Handle, position: Position) -> tuple[list[str], Position]:
        with self._api_errors("get pods/log"):
            pod = self._pod_of(handle)
            state = _state(pod) if pod else None
            if state is None or not (state.running or state.terminated):
                return [], position
            # Looked up first: what is read after the end is all there is.
            ended = state.terminated is not None
            age: dict[str, Any] = {"since_seconds": _age_s(position[0]) + CLOCK_SKEW_S} if position else {}
            try:
                response = self._client.read_namespaced_pod_log(
                    handle["name"],
                    handle["namespace"],
                    container=CONTAINER,
                    timestamps=True,
                    _preload_content=False,
                    **age,
                )
                data = response.data
            except ApiException as error:
                if error.status in NODE_SILENT:  # It may come back, and how the stage does is not in its log.
                    return ([f"the rest of the log cannot be read: {_message(error)}"] if ended else []), position
                if error.status in (400, 404):  # Not started after all, or gone meanwhile.
                    return [], position
                raise
        return read_on(data, position, ended)

    def cancel(self, handle: Handle) -> None:
        with self._api_errors("delete pods"):
            self._delete(handle["name"], handle["uid"])

    def forget(self, handle: Handle) -> None:
        self.cancel(handle)

    def jobs(self) -> list[Handle]:
        with self._api_errors("list pods"):
            selector = f"{DEPLOYMENT_LABEL}={self._deployment}"
            pods = self._client.list_namespaced_pod(self._settings.namespace, label_selector=selector).items
        return [self._handle(pod) for pod in pods if pod.status.phase in ("Pending", "Running")]

    def pod(self, job: Job) -> V1Pod:
        """The template with what ``job`` adds to it: name, task, image, arguments and resources. No secret."""
        path = self._settings.pod_template
        if not Path(path).is_file():
            raise ConfigurationError(
                f"there is no pod template at {path}", "name one as `kubernetes.pod_template` in runtime.toml"
            )
        template = PodGenerator.deserialize_model_file(path)
        names = [container.name for container in template.spec.containers]
        if names[:1] != [CONTAINER]:
            raise ConfigurationError(
                f"{path}: the first container is {names[:1]}", f"call it {CONTAINER!r}: the stage runs in it"
            )
        return PodGenerator.reconcile_pods(template, PodGenerator.deserialize_model_dict(self._additions(job)))

    def _additions(self, job: Job) -> dict[str, Any]:
        volumes = _volumes(job.resources)
        environment = self._settings.environment | {"RETRO_IMAGE": self._settings.image}
        return {
            "metadata": {
                "name": job.name,
                "namespace": self._settings.namespace,
                "labels": {
                    "app.kubernetes.io/name": "retro-ops",
                    "app.kubernetes.io/managed-by": "airflow",
                    DEPLOYMENT_LABEL: self._deployment,
                    STAGE_LABEL: job.arguments[0],
                },
                # Not labels: a run id may hold what a label may not.
                "annotations": {TASK_ANNOTATION: json.dumps(asdict(job.task))},
            },
            "spec": {
                "restartPolicy": "Never",
                "nodeSelector": job.resources.node_selector or None,
                "tolerations": [dict(toleration) for toleration in job.resources.tolerations] or None,
                "containers": [
                    {
                        "name": CONTAINER,
                        "image": self._settings.image,
                        "args": list(job.arguments),
                        "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
                        "resources": _requirements(job.resources),
                        "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes],
                    }
                ],
                "volumes": [{"name": name, "emptyDir": directory} for name, _, directory in volumes],
            },
        }

    @cached_property
    def _client(self) -> CoreV1Api:
        try:
            # Without a connection: the cluster that this runs in, else the user's kubeconfig.
            return KubernetesHook(conn_id=self._settings.connection, kubernetes_conn_id=None).core_v1_client
        except ConfigException as error:
            raise ConfigurationError(
                f"no Kubernetes cluster is known here: {error}",
                "run Airflow in the cluster, or name an Airflow connection as `kubernetes.connection` in runtime.toml",
            ) from error
        except AirflowNotFoundException as error:
            raise ConfigurationError(
                f"there is no Airflow connection {self._settings.connection!r}",
                "create it (type kubernetes), or mend `kubernetes.connection` in runtime.toml",
            ) from error

    def _read(self, name: str) -> V1Pod | None:
        try:
            return self._client.read_namespaced_pod(name, self._settings.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _pod_of(self, handle: Handle) -> V1Pod | None:
        """None when the pod is gone, or another one has its name."""
        pod = self._read(handle["name"])
        return pod if pod is not None and pod.metadata.uid == handle["uid"] else None

    def _delete(self, name: str, uid: str) -> None:
        options = {"gracePeriodSeconds": GRACE_S, "preconditions": {"uid": uid}}
        try:
            self._client.delete_namespaced_pod(name, self._settings.namespace, body=options)
        except ApiException as error:
            if error.status not in (404, 409):  # Gone, or another pod has the name now.
                raise

    def _handle(self, pod: V1Pod) -> Handle:
        return {
            "runtime": "kubernetes",
            "name": pod.metadata.name,
            "task": json.loads(pod.metadata.annotations[TASK_ANNOTATION]),
            "namespace": pod.metadata.namespace,
            "uid": pod.metadata.uid,
        }

    @contextmanager
    def _api_errors(self, what: str) -> Iterator[None]:
        where = f"in namespace {self._settings.namespace}"
        try:
            yield
        except ApiException as error:
            said = _message(error)
            refusal = f"Kubernetes refuses to {what} {where}: {said}"
            if error.status == 403 and "exceeded quota" in said:
                hint = "a retry waits for other pods to end; or ask for less in `resources`, or raise the quota"
                raise TransientError(refusal, hint) from error
            if error.status == 403 and " cannot " not in said:  # An admission policy speaks, not the roles.
                raise ConfigurationError(refusal, _UNFIT) from error
            if error.status in _MEANING:
                raise ConfigurationError(refusal, _MEANING[error.status]) from error
            raise TransientError(f"Kubernetes failed to {what} {where}: {said}", "run again") from error
        except HTTPError as error:
            raise TransientError(f"Kubernetes does not answer: {error}", "a retry reconnects") from error


def _status(pod: V1Pod, start_timeout_s: float) -> Status:
    phase, state, deleted = pod.status.phase, _state(pod), pod.metadata.deletion_timestamp
    ended = state.terminated if state else None
    # Evicted, preempted, node shut down, deleted: whatever the container said then is not its own doing.
    disturbed = pod.status.reason or _condition(pod, "DisruptionTarget", "True") or ("Deleted" if deleted else "")
    if (ended and ended.exit_code and disturbed) or (not ended and phase in ("Succeeded", "Failed")):
        why = ". ".join(filter(None, (disturbed or "no reason given", (pod.status.message or "").rstrip("."))))
        return Status("lost", reason=f"its pod was ended: {why}")
    if ended:
        reason = f"it ran out of memory (limit {_limit(pod)})" if ended.reason == "OOMKilled" else (ended.message or "")
        return Status("failed" if ended.exit_code else "succeeded", exit_code=ended.exit_code, reason=reason)
    if deleted and _seconds_since(deleted) > NODE_LOST_S:
        return Status("lost", reason=f"its pod is being deleted ({disturbed}) and its node does not answer")
    if phase == "Running":
        return Status("running")
    return _waiting(pod, state, start_timeout_s)


def _waiting(pod: V1Pod, state: V1ContainerState | None, start_timeout_s: float) -> Status:
    waits = _waits_for(pod, state)
    complaint = state.waiting.reason if state and state.waiting else None
    if complaint in NEVER_STARTS:
        return Status("failed", exit_code=EXIT_CONFIGURATION, reason=waits)
    if pod.status.phase != "Pending" or _seconds_since(pod.metadata.creation_timestamp) <= start_timeout_s:
        return Status("running", reason=waits)
    reason = f"its pod did not start within {start_timeout_s:.0f} s: {waits}"
    if complaint and complaint not in NO_COMPLAINT:  # A retry would wait as long for the same image or secret.
        return Status("failed", exit_code=EXIT_CONFIGURATION, reason=reason)
    return Status("lost", reason=reason)


def _waits_for(pod: V1Pod, state: V1ContainerState | None) -> str:
    waiting = state.waiting if state else None
    if waiting:
        return ": ".join(filter(None, (waiting.reason, waiting.message)))
    return _condition(pod, "PodScheduled", "False") or f"its pod is {pod.status.phase}"


def _condition(pod: V1Pod, kind: str, value: str) -> str:
    """Reason and message of the pod's condition ``kind`` if it is ``value``, else nothing."""
    for condition in pod.status.conditions or ():
        if condition.type == kind and condition.status == value:
            return ": ".join(filter(None, (condition.reason, condition.message))) or kind
    return ""


def _state(pod: V1Pod) -> V1ContainerState | None:
    """Of the container of the stage; other containers may run longer."""
    return next((entry.state for entry in pod.status.container_statuses or () if entry.name == CONTAINER), None)


def _limit(pod: V1Pod) -> str:
    resources = pod.spec.containers[0].resources
    limits = (resources.limits if resources else None) or {}
    return str(limits.get("memory", "the node's"))


def _requirements(resources: Resources) -> dict[str, Any] | None:
    """Requests equal limits, so that a stage is not evicted for using what it was given. None: the template's."""
    if not isinstance(resources.gpus, int):
        raise ConfigurationError(
            f"gpus = {list(resources.gpus)}: Kubernetes gives GPUs by number",
            "write gpus = 1, and a node_selector for the kind",
        )
    amounts = {
        "cpu": f"{resources.cpus:g}" if resources.cpus else None,
        "memory": _quantity(resources.memory),
        "ephemeral-storage": _quantity(resources.scratch),
        "nvidia.com/gpu": str(resources.gpus) if resources.gpus else None,
    }
    given = {name: amount for name, amount in amounts.items() if amount}
    return {"limits": given, "requests": dict(given)} if given else None


def _volumes(resources: Resources) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, mount path and emptyDir."""
    scratch = _quantity(resources.scratch)
    volumes: list[tuple[str, str, dict[str, Any]]] = [
        ("scratch", "/scratch", {"sizeLimit": scratch} if scratch else {})
    ]
    if resources.shared_memory:
        size = _quantity(resources.shared_memory)
        volumes.append(("shared-memory", "/dev/shm", {"medium": "Memory", "sizeLimit": size}))  # noqa: S108
    return volumes


def _quantity(size: str | None) -> str | None:
    """In bytes: Kubernetes does not know the B of GiB."""
    return str(parse_bytes(size)) if size else None


def _age_s(stamp: str) -> int:
    return max(0, int(_seconds_since(datetime.fromisoformat(f"{stamp[:19]}+00:00")))) + 1


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
