"""The Kubernetes of one node that one-node.sh started: its API, its engine, and what disturbs it."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiClient, CoreV1Api, V1Pod
from kubernetes.config import new_client_from_config
from kubernetes.dynamic import DynamicClient

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
DEPLOY = REPOSITORY / "deploy" / "kubernetes"
ADDRESS = "10.88.0.1"
"""Of the node. Pods reach what listens there."""
NODE = "node1"
GPU = "nvidia.com/gpu"
NAMESPACE = "retro"
STAGE_IMAGE = "retro-ops-stage:cpu"


class OneNode:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def api(self) -> ApiClient:
        return new_client_from_config(str(self.folder / "admin.conf"))

    @cached_property
    def _dynamic(self) -> DynamicClient:
        return DynamicClient(self.api)

    @cached_property
    def core(self) -> CoreV1Api:
        """As an administrator of the cluster."""
        return CoreV1Api(self.api)

    def apply(self, *documents: dict[str, Any]) -> None:
        """As `kubectl apply --server-side` does."""
        for body in documents:
            kind = self._dynamic.resources.get(api_version=body["apiVersion"], kind=body["kind"])
            metadata = body["metadata"]
            kind.server_side_apply(
                body, metadata["name"], metadata.get("namespace"), field_manager="tests", force_conflicts=True
            )

    def build(self, tag: str, dockerfile: str) -> str:
        """An image in the node's engine, from the text of a Dockerfile; tests/airflow is its context."""
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        command = ["/usr/bin/docker", "-H", f"unix://{self.folder}/docker.sock", "build", "-q", "-t", tag, "-f", "-"]
        subprocess.run(
            [*command, "tests/airflow"],
            input=dockerfile.encode(),
            cwd=REPOSITORY,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return tag

    def pods(self, selector: str = "") -> list[V1Pod]:
        return list(self.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items)

    def evict(self, name: str) -> None:
        """As a drain of its node does, and as a cloud does before it takes back a spot node."""
        body = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        self.core.create_namespaced_pod_eviction(name, NAMESPACE, body)

    def advertise_gpus(self, count: int) -> None:
        """As a device plugin does. There is no device in a pod, but the scheduler counts."""
        body = {"status": {"capacity": {GPU: str(count)}, "allocatable": {GPU: str(count)}}}
        self.core.patch_node_status(NODE, body, _content_type="application/merge-patch+json")

    def change_node(self, **changes: Any) -> None:
        """Merge ``changes`` (metadata, spec) into the node."""
        self.core.patch_node(NODE, changes, _content_type="application/merge-patch+json")

    def stop(self, component: str) -> None:
        self._script("stop", component)

    def start(self, component: str) -> None:
        self._script("start", component)

    def pause(self, component: str) -> None:
        self._signal(component, signal.SIGSTOP)

    def go_on(self, component: str) -> None:
        self._signal(component, signal.SIGCONT)

    def is_ready(self) -> bool:
        conditions = self.core.read_node(NODE).status.conditions
        return any(entry.type == "Ready" and entry.status == "True" for entry in conditions)

    def kubeconfig(self, path: Path, account: str, namespace: str = "airflow") -> Path:
        """A kubeconfig with the token that a pod of the service account would have."""
        request = {"spec": {"audiences": ["https://kubernetes.default.svc"], "expirationSeconds": 7200}}
        token = self.core.create_namespaced_service_account_token(account, namespace, request).status.token
        config = yaml.safe_load((self.folder / "admin.conf").read_text())
        config["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def _signal(self, component: str, number: int) -> None:
        os.kill(int((self.folder / "pid" / component).read_text()), number)

    def _script(self, action: str, component: str) -> None:
        subprocess.run([HERE / "one-node.sh", action, self.folder, component], check=True, stdout=sys.stderr)


def install(node: OneNode, keys: dict[str, str]) -> None:
    """What deploy/kubernetes/README.md does before the chart, and the service accounts that the chart makes."""
    node.apply(
        *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("retro", "airflow"))
    )
    data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
    metadata = {"name": "retro-object-store", "namespace": NAMESPACE}
    node.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
    node.apply(
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "airflow"}}
            for name in ("airflow-scheduler", "airflow-worker", "airflow-triggerer")
        )
    )
    node.apply(*yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()))


def connection(kubeconfig: Path) -> str:
    """An Airflow connection, as its variable."""
    return json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}})


def wait_until(condition: Callable[[], object], timeout_s: float = 60, explain: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {timeout_s} s {explain()}"
        time.sleep(0.2)


def names(pods: Sequence[V1Pod]) -> list[str]:
    return [pod.metadata.name for pod in pods]
