"""Runs stages as pods. The pod template holds the settings that all pods share; a job adds its own.

All state is in the API server: a pod has the name of its job, so a second submission finds the first; its
annotations hold its task; its exit code and log stay until ``forget``.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.sdk.exceptions import AirflowNotFoundException
from kubernetes.client import ApiException, CoreV1Api, V1Pod
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from retro_airflow.deployment import Kubernetes
from retro_airflow.runtimes import Handle, Job, Position, Status, pod_resources, pod_states
from retro_airflow.runtimes.outages import OutageError
from retro_airflow.runtimes.pod_states import CONTAINER
from retro_airflow.runtimes.stamped_logs import read_on
from retro_ops.errors import EXIT_CONFIGURATION, ConfigurationError, TransientError

DEPLOYMENT_LABEL = "retro-ops/deployment"
STAGE_LABEL = "retro-ops/stage"
TASK_ANNOTATION = "retro-ops/task"

GRACE_S = 3
"""Seconds between SIGTERM and SIGKILL. Airflow gives on_kill 5 s before it kills the task process itself."""

SUBMIT_TRIES = 240
SUBMIT_PAUSE_S = 0.5
"""A busy node takes a minute to remove a pod that has ended, and its name is taken until then."""

TIMEOUTS_S = (5, 30)
"""Of a request, to connect and to read: the API server waits for a node that does not answer."""

CLOCK_SKEW_S = 60
"""Largest difference between the clocks of a node and of the worker: logs are requested by age."""

NEVER_STARTS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
"""Reasons for which a container waits forever, until the deployment is fixed."""

COMPLAINT_S = 180.0
"""How long an image or a secret may be missing, which may pass. A retry would not help afterwards."""

NODE_SILENT = frozenset({500, 502, 503, 504})
"""Status codes of the API server for a log on a node that it cannot reach."""

_UNFIT = "fix the pod template, or `resources` in runtime.toml"
_MEANING = {
    400: _UNFIT,
    401: "the cluster does not accept the credentials: check the service account or the connection",
    403: "give the worker's service account the role in deploy/kubernetes/rbac.yaml",
    404: "create the namespace, or fix `kubernetes.namespace` in runtime.toml",
    422: _UNFIT,
}


class KubernetesRuntime:
    """``deployment`` distinguishes the pods of several Airflows in one namespace."""

    def __init__(self, settings: Kubernetes, deployment: str) -> None:
        self._settings = settings
        self._deployment = deployment
        self._complains_since: dict[str, float] = {}

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Without the template's environment: to run it by hand, add the keys of the object store."""
        where = ["--namespace", self._settings.namespace, "--image", self._settings.image]
        return ["kubectl", "run", arguments[0], "--rm", "-it", "--restart=Never", *where, "--", *arguments]

    def submit(self, job: Job) -> Handle:
        pod = self.pod(job)
        with self._api_errors("create pods"):
            for _ in range(SUBMIT_TRIES):
                try:
                    made = self._client.create_namespaced_pod(
                        self._settings.namespace, pod, _request_timeout=TIMEOUTS_S
                    )
                    return self._handle(made)
                except ApiException as error:
                    if error.status != 409:
                        raise
                # The name is taken: by this job, by an earlier try, or by a pod that is being deleted.
                found = self._read(job.name)
                if found is not None and found.metadata.deletion_timestamp is None:
                    if found.status.phase in ("Pending", "Running"):
                        return self._handle(found)
                    self._delete(job.name, found.metadata.uid)
                time.sleep(SUBMIT_PAUSE_S)
        by_hand = f"kubectl -n {self._settings.namespace} delete pod {job.name} --force"
        raise TransientError(
            f"pod {job.name} is being deleted but still exists",
            f"run again; if its node is lost for good: {by_hand}",
        )

    def status(self, handle: Handle) -> Status:
        with self._api_errors("get pods"):
            pod = self._pod_of(handle)
        if pod is None:
            return Status("lost", reason=f"pod {handle['name']} was deleted")
        return self._given_up(pod) or pod_states.status(pod, self._settings.start_timeout_s)

    def _given_up(self, pod: V1Pod) -> Status | None:
        """The failure of a pod whose image or secret has been missing for COMPLAINT_S, as far as this process knows."""
        complaint = pod_states.complaint(pod)
        if complaint is None:
            self._complains_since.pop(pod.metadata.uid, None)
            return None
        since = self._complains_since.setdefault(pod.metadata.uid, time.monotonic())
        if complaint not in NEVER_STARTS and time.monotonic() - since < COMPLAINT_S:
            return None
        reason = f"its pod cannot start: {pod_states.waits_for(pod)}"
        return Status("failed", exit_code=EXIT_CONFIGURATION, reason=reason)

    def logs(self, handle: Handle, position: Position) -> tuple[list[str], Position]:
        with self._api_errors("get pods/log"):
            pod = self._pod_of(handle)
            state = pod_states.container_state(pod) if pod else None
            if state is None or not (state.running or state.terminated):
                return [], position
            # In this order: a log that is read after the end is complete.
            ended = state.terminated is not None
            age: dict[str, Any] = {"since_seconds": _age_s(position[0]) + CLOCK_SKEW_S} if position else {}
            try:
                response = self._client.read_namespaced_pod_log(
                    handle["name"],
                    handle["namespace"],
                    container=CONTAINER,
                    timestamps=True,
                    _preload_content=False,
                    _request_timeout=TIMEOUTS_S,
                    **age,
                )
                data = response.data
            except ApiException as error:
                # The node may come back, and the state of the stage does not depend on its log.
                if error.status in NODE_SILENT:
                    return ([f"the rest of the log cannot be read: {_message(error)}"] if ended else []), position
                if error.status in (400, 404):  # Not started after all, or gone since.
                    return [], position
                raise
            except HTTPError as error:  # The API server waits for a node that does not answer.
                return ([f"the rest of the log cannot be read: {error}"] if ended else []), position
        return read_on(data, position, ended)

    def cancel(self, handle: Handle) -> None:
        with self._api_errors("delete pods"):
            self._delete(handle["name"], handle["uid"])

    def forget(self, handle: Handle) -> None:
        self.cancel(handle)

    def jobs(self) -> list[Handle]:
        with self._api_errors("list pods"):
            selector = f"{DEPLOYMENT_LABEL}={self._deployment}"
            pods = self._client.list_namespaced_pod(
                self._settings.namespace, label_selector=selector, _request_timeout=TIMEOUTS_S
            ).items
        return [self._handle(pod) for pod in pods if pod.status.phase in ("Pending", "Running")]

    def pod(self, job: Job) -> V1Pod:
        """The template with name, task, image, arguments and resources of ``job``. Contains no secret."""
        path = self._settings.pod_template
        if not Path(path).is_file():
            raise ConfigurationError(
                f"there is no pod template at {path}", "set `kubernetes.pod_template` in runtime.toml"
            )
        template = PodGenerator.deserialize_model_file(path)
        names = [container.name for container in template.spec.containers]
        if names[:1] != [CONTAINER]:
            raise ConfigurationError(
                f"{path}: the first container is {names[:1]}", f"call it {CONTAINER!r}, since the stage runs in it"
            )
        return PodGenerator.reconcile_pods(template, PodGenerator.deserialize_model_dict(self._additions(job)))

    def _additions(self, job: Job) -> dict[str, Any]:
        volumes = pod_resources.volumes(job.resources)
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
                # Not labels: a run id may contain characters that a label may not.
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
                        "resources": pod_resources.requirements(job.resources),
                        "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in volumes],
                    }
                ],
                "volumes": [{"name": name, "emptyDir": directory} for name, _, directory in volumes],
            },
        }

    @cached_property
    def _client(self) -> CoreV1Api:
        try:
            # Without a connection: the cluster of this process, else the user's kubeconfig.
            return KubernetesHook(conn_id=self._settings.connection, kubernetes_conn_id=None).core_v1_client
        except ConfigException as error:
            raise ConfigurationError(
                f"no Kubernetes cluster is configured: {error}",
                "run Airflow in the cluster, or set `kubernetes.connection` in runtime.toml to an Airflow connection",
            ) from error
        except AirflowNotFoundException as error:
            raise ConfigurationError(
                f"there is no Airflow connection {self._settings.connection!r}",
                "create it (type kubernetes), or fix `kubernetes.connection` in runtime.toml",
            ) from error

    def _read(self, name: str) -> V1Pod | None:
        try:
            return self._client.read_namespaced_pod(name, self._settings.namespace, _request_timeout=TIMEOUTS_S)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _pod_of(self, handle: Handle) -> V1Pod | None:
        """The pod; None if it is gone or another one has its name."""
        pod = self._read(handle["name"])
        return pod if pod is not None and pod.metadata.uid == handle["uid"] else None

    def _delete(self, name: str, uid: str) -> None:
        options = {"gracePeriodSeconds": GRACE_S, "preconditions": {"uid": uid}}
        try:
            self._client.delete_namespaced_pod(
                name, self._settings.namespace, body=options, _request_timeout=TIMEOUTS_S
            )
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
            message = _message(error)
            refusal = f"Kubernetes refused to {what} {where}: {message}"
            if error.status == 403 and "exceeded quota" in message:
                hint = "a retry waits for other pods to end; or request less in `resources`, or raise the quota"
                raise TransientError(refusal, hint) from error
            if error.status == 403 and " cannot " not in message:  # Refused by an admission policy, not by the roles.
                raise ConfigurationError(refusal, _UNFIT) from error
            if error.status in _MEANING:
                raise ConfigurationError(refusal, _MEANING[error.status]) from error
            raise OutageError(f"Kubernetes failed to {what} {where}: {message}", "run again") from error
        except HTTPError as error:
            raise OutageError(f"Kubernetes does not answer: {error}", "a retry reconnects") from error


def _age_s(stamp: str) -> int:
    return max(0, int(pod_states.seconds_since(datetime.fromisoformat(f"{stamp[:19]}+00:00")))) + 1


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
