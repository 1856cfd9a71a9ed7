"""The Kubernetes runtime against an HTTP server that speaks the API, and its pods against the API's schema.

What only a cluster can show (scheduling, admission, image pulls, evictions as they happen) is not here.
"""

import json
import re
import threading
import time
import tomllib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import pytest
import yaml
from airflow_environment import REPOSITORY
from kubernetes.client import ApiClient
from kubernetes.utils import parse_quantity
from retro_airflow import deployment
from retro_airflow.deployment import Kubernetes, Resources
from retro_airflow.runtimes import Handle, Job, Status, Task, pod_resources
from retro_airflow.runtimes import kubernetes as kubernetes_runtime
from retro_airflow.runtimes.kubernetes import KubernetesRuntime
from retro_airflow.runtimes.outages import OutageError

from retro_ops.errors import ConfigurationError, TransientError
from retro_ops.plan.stage_graph import STAGES

DEPLOY = REPOSITORY / "deploy" / "kubernetes"
TEMPLATE = Kubernetes().pod_template
VERSION = "1.31"
TASK = Task("retro_dataset", "manual__2026-11-24T00:00:00+00:00", "shards.embed_chunks", 3)
SECRET = "a-secret-that-must-not-leak"


class Cluster:
    """The part of an API server that the runtime calls. ``pods`` is its state; tests change it as a kubelet would."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, list[tuple[str, str]]] = {}
        self.calls: list[str] = []
        self.refuse: tuple[int, str] | None = None
        self.refuse_logs: tuple[int, str] | None = None
        self.kubelet_says = b""
        self.slow_deletes = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.calls.append(f"{method} {path}")
        if self.refuse:
            return self.status(*self.refuse)
        match = re.fullmatch(r"/api/v1/namespaces/(\w+)/pods(?:/([\w.-]+))?(/log)?", path)
        if not match or match[1] != "retro":
            return self.status(404, f'namespaces "{match and match[1]}" not found')
        name = match[2]
        if method == "POST":
            return self.create(body)
        if name is None:
            label, _, value = query["labelSelector"].partition("=")
            items = [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(label) == value]
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        if name not in self.pods:
            return self.status(404, f'pods "{name}" not found')
        if match[3]:
            return self.log(name, query)
        if method == "DELETE":
            return self.delete(name, body)
        return 200, self.pods[name]

    def create(self, pod: dict[str, Any]) -> tuple[int, Any]:
        name = pod["metadata"]["name"]
        if name in self.pods:
            going = "object is being deleted: " if "deletionTimestamp" in self.pods[name]["metadata"] else ""
            if going:
                self.slow_deletes -= 1
                if self.slow_deletes <= 0:
                    del self.pods[name]
            return self.status(409, f'{going}pods "{name}" already exists')
        pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        pod["status"] = {"phase": "Pending"}
        self.pods[name] = pod
        self.lines[name] = []
        return 201, pod

    def delete(self, name: str, options: dict[str, Any]) -> tuple[int, Any]:
        pod = self.pods[name]
        if options.get("preconditions", {}).get("uid", pod["metadata"]["uid"]) != pod["metadata"]["uid"]:
            return self.status(409, "the UID in the precondition does not match")
        assert options["gracePeriodSeconds"] == 3
        pod["metadata"]["deletionTimestamp"] = now()
        if not self.slow_deletes:
            del self.pods[name]
        return 200, pod

    def log(self, name: str, query: dict[str, str]) -> tuple[int, Any]:
        assert (query["container"], query["timestamps"]) == ("stage", "True")
        if self.refuse_logs:
            return self.status(*self.refuse_logs)
        if self.pods[name]["status"]["phase"] == "Pending":
            return self.status(400, 'container "stage" in pod is waiting to start: ContainerCreating')
        since = datetime.now(UTC) - timedelta(seconds=int(query.get("sinceSeconds", 10**9)))
        text = "".join(f"{at} {line}" for at, line in self.lines[name] if datetime.fromisoformat(at) >= since)
        return 200, text.encode() + self.kubelet_says

    @staticmethod
    def status(code: int, message: str) -> tuple[int, Any]:
        return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}

    def becomes(self, handle: Handle, phase: str, container: dict[str, Any] | None = None, **status: Any) -> None:
        """Set the phase of the pod and the state of its container, as a kubelet reports them."""
        statuses = [
            {"name": "stage", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": container or {}}
        ]
        self.pods[handle["name"]]["status"] = {
            "phase": phase,
            "containerStatuses": statuses if container else [],
            **status,
        }

    def says(self, handle: Handle, *lines: str, at: datetime | str | None = None) -> None:
        stamp = at if isinstance(at, str) else (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        self.lines[handle["name"]] += [(stamp, line) for line in lines]


def now(seconds_ago: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


RUNNING = {"running": {"startedAt": "2026-11-24T00:00:00Z"}}


def terminated(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A server on a port of its own, and a connection that leads there."""
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            url = urlparse(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            code, answer = cluster.answer(self.command, url.path, query, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do  # noqa: N815 - names that http.server looks up

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "test", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    extra = {"kube_config_path": str(tmp_path / "kubeconfig")}
    monkeypatch.setenv("AIRFLOW_CONN_TEST_CLUSTER", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    yield cluster
    server.shutdown()
    thread.join()
    server.server_close()


def runtime(**settings: Any) -> KubernetesRuntime:
    chosen = {"namespace": "retro", "pod_template": TEMPLATE, "connection": "test_cluster"} | settings
    return KubernetesRuntime(Kubernetes.model_validate(chosen), "tests")


def job(name: str = "retro-embed-chunks-3-0123456789ab", **resources: Any) -> Job:
    environment = {"AWS_SECRET_ACCESS_KEY": SECRET, "PATH": "/of/the/worker"}
    return Job(name, ["embed-chunks", "--plan", "s3://b/plan.json", "--shard", "a b;$(c)"], environment, TASK,
               Resources.model_validate(resources))  # fmt: skip


# --- the pods

EVERYTHING = {
    "cpus": 7.5,
    "memory": "32GiB",
    "shared_memory": "8GiB",
    "gpus": 2,
    "scratch": "50GB",
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}


def as_sent(made: KubernetesRuntime, of: Job) -> dict[str, Any]:
    return dict(ApiClient().sanitize_for_serialization(made.pod(of)))


@pytest.mark.parametrize("resources", [{}, EVERYTHING], ids=["no limits", "everything"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_pod_of_every_stage_is_sound(stage: str, resources: dict[str, Any]) -> None:
    name = f"retro-{stage}-3-0123456789ab"
    pod = as_sent(runtime(environment={"HF_HUB_OFFLINE": "1"}), Job(name, [stage], {}, TASK, Resources(**resources)))
    kubernetes_validate.validate(pod, VERSION, strict=True)
    check_pod(pod)
    assert pod["metadata"]["labels"]["retro-ops/stage"] == stage


def check_pod(pod: dict[str, Any]) -> None:
    """Check rules that the schema does not contain."""
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", pod["metadata"]["name"])
    for value in pod["metadata"]["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)
    (container,) = pod["spec"]["containers"]
    assert "command" not in container, "the image's entry point, never a shell"
    resources = container.get("resources", {})
    assert resources.get("requests") == resources.get("limits")
    sizes = [
        directory["sizeLimit"] for volume in pod["spec"]["volumes"] if "sizeLimit" in (directory := volume["emptyDir"])
    ]
    for quantity in [*resources.get("limits", {}).values(), *sizes]:
        assert parse_quantity(quantity) > 0
    for toleration in pod["spec"].get("tolerations", ()):
        assert toleration["effect"] in ("NoSchedule", "PreferNoSchedule", "NoExecute")
        assert toleration["operator"] in ("Exists", "Equal")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]} >= {"scratch"}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert not pod["spec"]["automountServiceAccountToken"]


def test_a_pod_requests_the_resources_of_the_deployment() -> None:
    spec = as_sent(runtime(), job(**EVERYTHING))["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {
        "cpu": "7.5", "memory": str(32 * 2**30), "ephemeral-storage": str(50 * 10**9), "nvidia.com/gpu": "2"
    }  # fmt: skip
    assert container["args"] == list(job().arguments)
    assert spec["nodeSelector"] == EVERYTHING["node_selector"]
    assert spec["tolerations"] == EVERYTHING["tolerations"]
    directories = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert directories["shared-memory"] == {"medium": "Memory", "sizeLimit": str(8 * 2**30)}


def test_keys_come_by_reference_only() -> None:
    pod = as_sent(runtime(), job())
    assert SECRET not in json.dumps(pod)
    (container,) = pod["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "retro-object-store"}}]
    assert {entry["name"] for entry in container["env"]} == {"RETRO_IMAGE"}


def test_the_files_to_apply_are_sound() -> None:
    for path in (DEPLOY / "rbac.yaml", Path(TEMPLATE)):
        for document in yaml.safe_load_all(path.read_text()):
            kubernetes_validate.validate(document, VERSION, strict=True)
    (role, binding) = yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_role_allows_what_the_runtime_does_and_no_more(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Running", RUNNING)
    made.logs(handle, None)
    made.jobs()
    made.cancel(handle)
    verbs = {"POST": "create", "GET": "get", "DELETE": "delete"}
    used = set()
    for call in cluster.calls:
        method, path = call.split()
        of_all = path.endswith("/pods") and method == "GET"
        resource = "pods/log" if path.endswith("/log") else "pods"
        used.add((resource, "list" if of_all else verbs[method]))
    role = next(yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()))
    assert {
        (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    } == used


def test_values_and_readme_agree_with_the_package() -> None:
    values = yaml.safe_load((DEPLOY / "values.yaml").read_text())
    environment = {entry["name"]: entry["value"] for entry in values["env"]}
    assert environment["RETRO_RUNTIME"] == "kubernetes"
    (mount,) = values["volumeMounts"]
    assert mount["mountPath"] == environment["RETRO_RUNTIME_FILE"]
    assert [volume["name"] for volume in values["volumes"]] == [mount["name"]]
    assert values["secret"][0]["envName"] == "AIRFLOW_CONN_RETRO_OBJECT_STORE"
    example = re.search(r"```toml\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    assert example is not None
    config = deployment.Deployment.model_validate(tomllib.loads(example[1]))
    assert config.object_store.connection == "retro_object_store"
    assert config.kubernetes.pod_template == TEMPLATE
    deployment.check_resources(config.resources, "README.md")
    for stage in STAGES:
        pod_resources.requirements(config.resources_of(stage))
    _, binding = yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text())
    assert binding["metadata"]["namespace"] == config.kubernetes.namespace


CHART: dict[str, Any] = {
    "airflowVersion": str,
    "config": dict,  # section and key of airflow.cfg
    "dags": {"persistence": {"enabled": bool}},
    "defaultAirflowRepository": str,
    "defaultAirflowTag": str,
    "env": [{"name": str, "value": str}],
    "executor": str,
    "secret": [{"envName": str, "secretKey": str, "secretName": str}],
    "triggerer": {"enabled": bool},
    "volumeMounts": list,
    "volumes": list,
}
"""The keys of the official chart that we use, as chart/values.schema.json of apache/airflow describes them."""


def test_values_name_only_keys_of_the_chart() -> None:
    values = yaml.safe_load((DEPLOY / "values.yaml").read_text())
    assert list(unknown_to(CHART, values)) == []
    assert list(unknown_to(CHART, {"env": [{"nam": "a", "value": 1}], "triggerer": {"enable": True}})) == [
        ".env.nam",
        ".env.value",
        ".triggerer.enable",
    ]


def unknown_to(schema: Any, value: Any, place: str = "") -> Iterator[str]:
    """Places in ``value`` that ``schema`` does not have, or has with another type."""
    if isinstance(schema, type):
        if not isinstance(value, schema):
            yield place
    elif isinstance(schema, list):
        for entry in value:
            yield from unknown_to(schema[0], entry, place)
    else:
        for key, entry in value.items():
            where = f"{place}.{key}"
            yield from unknown_to(schema[key], entry, where) if key in schema else (where,)


def test_resources_of_the_template_stay_where_runtime_toml_names_none(tmp_path: Path) -> None:
    template = yaml.safe_load(Path(TEMPLATE).read_text())
    template["spec"]["containers"][0]["resources"] = {"limits": {"memory": "1Gi"}}
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(template))
    made = runtime(pod_template=str(tmp_path / "pod.yaml"))
    assert as_sent(made, job())["spec"]["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    limits = as_sent(made, job(memory="2GiB"))["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"memory": str(2 * 2**30)}


def test_devices_by_id_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="by number"):
        runtime().pod(job(gpus=["0"]))


def test_a_template_that_is_missing_or_names_another_container(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no pod template"):
        runtime(pod_template=str(tmp_path / "none.yaml")).pod(job())
    other = tmp_path / "other.yaml"
    other.write_text(Path(TEMPLATE).read_text().replace("- name: stage", "- name: base"))
    with pytest.raises(ConfigurationError, match="call it 'stage'"):
        runtime(pod_template=str(other)).pod(job())


# --- the life of a pod


def test_a_pod_from_submission_to_success(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    assert handle["task"]["map_index"] == 3
    assert json.loads(json.dumps(handle)) == handle
    assert made.status(handle) == Status("running", reason="its pod is Pending")
    assert made.logs(handle, None) == ([], None)
    cluster.becomes(handle, "Running", RUNNING)
    cluster.says(handle, "one\n", "two\n", "thr")
    assert made.status(handle) == Status("running")
    lines, position = made.logs(handle, None)
    assert lines == ["one", "two"]
    cluster.lines[handle["name"]][-1] = (cluster.lines[handle["name"]][-1][0], "three\n")
    cluster.says(handle, "end")
    cluster.becomes(handle, "Succeeded", terminated(0, "Completed"))
    assert made.status(handle) == Status("succeeded", exit_code=0)
    lines, position = made.logs(handle, json.loads(json.dumps(position)))
    assert lines == ["three", "end"]
    assert made.logs(handle, position) == ([], position)
    assert runtime().logs(handle, None)[0] == ["one", "two", "three", "end"], "what a retry that reconnects prints"
    made.forget(handle)
    assert made.status(handle) == Status("lost", reason=f"pod {handle['name']} was deleted")
    made.forget(handle)


def test_old_lines_are_not_sent_again(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Running", RUNNING)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    cluster.says(handle, "old\n", at=hour_ago)
    cluster.says(handle, "new\n")
    lines, position = made.logs(handle, None)
    assert lines == ["old", "new"]
    cluster.says(handle, "newer\n")
    assert made.logs(handle, position)[0] == ["newer"]


def test_stamps_as_nodes_write_them(cluster: Cluster) -> None:
    """Local time with its offset, backwards where summer time ends, and lines that overtook each other."""
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Running", RUNNING)
    cluster.says(handle, "a\n", at="2026-10-25T02:59:59.500000000+02:00")
    lines, position = made.logs(handle, None)
    assert lines == ["a"]
    cluster.says(handle, "b\n", at="2026-10-25T02:00:01.000000007+01:00")
    cluster.says(handle, "c, stamped before b\n", at="2026-10-25T02:00:01.000000004+01:00")
    lines, position = made.logs(handle, position)
    assert lines == ["b", "c, stamped before b"]
    cluster.says(handle, "d, as well\n", at="2026-10-25T01:00:01.000000005Z")
    cluster.says(handle, "e\n", at="2026-10-25T01:00:01.1Z")
    lines, position = made.logs(handle, position)
    assert lines == ["d, as well", "e"]
    assert made.logs(handle, position) == ([], position)
    assert made.logs(handle, None)[0] == ["a", "b", "c, stamped before b", "d, as well", "e"]


def test_messages_of_the_kubelet_do_not_end_the_log(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Running", RUNNING)
    cluster.kubelet_says = b"unable to retrieve container logs for containerd://0\n"
    lines, position = made.logs(handle, None)
    assert lines == ["unable to retrieve container logs for containerd://0"]
    cluster.kubelet_says = b""
    cluster.says(handle, "one\n")
    assert made.logs(handle, position)[0] == ["one"]


def test_a_log_that_cannot_be_read_fails_no_stage(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Running", RUNNING)
    cluster.says(handle, "one\n")
    cluster.refuse_logs = (500, "dial tcp: i/o timeout")
    assert made.logs(handle, None) == ([], None), "the node may come back"
    cluster.becomes(handle, "Succeeded", terminated(0))
    assert made.logs(handle, None) == (["the rest of the log cannot be read: dial tcp: i/o timeout"], None)
    cluster.refuse_logs = (400, "container is waiting to start")
    assert made.logs(handle, None) == ([], None)
    cluster.refuse_logs = None
    assert made.logs(handle, None)[0] == ["one"]


def test_the_log_ends_with_its_container_even_if_a_sidecar_runs_on(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.says(handle, "no end of line")
    cluster.becomes(handle, "Running", terminated(0))
    assert made.logs(handle, None)[0] == ["no end of line"]


def test_submit_finds_the_pod_that_runs(cluster: Cluster) -> None:
    first = runtime().submit(job())
    assert runtime().submit(job()) == first
    cluster.becomes(first, "Running", RUNNING)
    assert runtime().submit(job()) == first
    assert list(cluster.pods) == [first["name"]]


def test_submit_replaces_a_pod_that_ended_and_waits_for_one_that_goes(cluster: Cluster) -> None:
    made = runtime()
    first = made.submit(job())
    cluster.becomes(first, "Failed", terminated(1))
    cluster.slow_deletes = 2
    second = made.submit(job())
    assert second["uid"] != first["uid"]
    assert made.status(first).state == "lost", "another pod has its name"
    made.cancel(first)
    assert made.status(second).state == "running", "the cancelled one was another"


def test_jobs_are_those_of_this_deployment_that_run(cluster: Cluster) -> None:
    made = runtime()
    running, ended = made.submit(job("retro-a")), made.submit(job("retro-b"))
    cluster.becomes(ended, "Succeeded", terminated(0))
    KubernetesRuntime(made._settings, "others").submit(job("retro-c"))
    assert made.jobs() == [running]
    made.cancel(running)
    assert "retro-a" not in cluster.pods


@pytest.mark.parametrize(
    ("phase", "container", "status", "expected"),
    [
        ("Failed", terminated(65), {}, Status("failed", 65)),
        ("Failed", terminated(137, "OOMKilled"), {}, Status("failed", 137, "it ran out of memory (limit 1.0 GiB)")),
        (
            "Failed",
            None,
            {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."},
            Status("lost", reason="its pod was ended: Evicted. The node was low on resource: ephemeral-storage"),
        ),
        (
            "Failed",
            terminated(143),
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
            Status("lost", reason="its pod was ended: PreemptionByScheduler"),
        ),
        (
            "Pending",
            None,
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                             "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]},
            Status("running", reason="Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        ),
        ("Pending", waiting("ContainerCreating"), {}, Status("running", reason="ContainerCreating")),
        (
            "Pending",
            waiting("ImagePullBackOff", "Back-off pulling image"),
            {},
            Status("running", reason="ImagePullBackOff: Back-off pulling image"),
        ),
        (
            "Pending",
            waiting("InvalidImageName", "could not parse reference"),
            {},
            Status("failed", 78, "its pod cannot start: InvalidImageName: could not parse reference"),
        ),
        (
            "Pending",
            waiting("CreateContainerConfigError", 'secret "retro-object-store" not found'),
            {},
            Status("running", reason='CreateContainerConfigError: secret "retro-object-store" not found'),
        ),
        ("Unknown", None, {}, Status("running", reason="its pod is Unknown")),
        ("Failed", None, {"reason": "OutOfcpu"}, Status("lost", reason="its pod was ended: OutOfcpu")),
        ("Running", terminated(0), {}, Status("succeeded", 0)),  # A sidecar still runs.
    ],
)  # fmt: skip
def test_the_status_follows_from_the_report_of_the_kubelet(
    cluster: Cluster, phase: str, container: dict[str, Any] | None, status: dict[str, Any], expected: Status
) -> None:
    made = runtime()
    handle = made.submit(job(memory="1GiB"))
    cluster.becomes(handle, phase, container, **status)
    assert made.status(handle) == expected


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}


@pytest.mark.parametrize(
    "container",
    [waiting("ImagePullBackOff", "no such image"), waiting("CreateContainerConfigError", "no secret")],
)
def test_an_image_or_secret_that_stays_missing_is_no_matter_for_a_retry(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, container: dict[str, Any]
) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.becomes(handle, "Pending", container)
    assert made.status(handle).state == "running"
    cluster.becomes(handle, "Pending", waiting("ContainerCreating"))
    assert made.status(handle).state == "running"
    monkeypatch.setattr(kubernetes_runtime, "COMPLAINT_S", 0.05)
    cluster.becomes(handle, "Pending", container)
    assert made.status(handle).state == "running", "the time begins again"
    time.sleep(0.06)
    said = ": ".join(container["waiting"].values())
    assert made.status(handle) == Status("failed", 78, f"its pod cannot start: {said}")


@pytest.mark.parametrize(
    ("container", "status", "waits"),
    [
        (waiting("ContainerCreating"), {}, "ContainerCreating"),
        (None, {"conditions": [UNSCHEDULABLE]}, "Unschedulable: no node"),
    ],
)
def test_a_pod_that_never_starts_is_given_up(
    cluster: Cluster, container: dict[str, Any] | None, status: dict[str, Any], waits: str
) -> None:
    made = runtime(start_timeout_s=5)
    handle = made.submit(job())
    cluster.becomes(handle, "Pending", container, **status)
    assert made.status(handle).state == "running"
    cluster.pods[handle["name"]]["metadata"]["creationTimestamp"] = now(6)
    assert made.status(handle) == Status("lost", None, f"its pod did not start within 5 s: {waits}")


def test_a_deleted_pod_is_lost(cluster: Cluster) -> None:
    made = runtime()
    handle = made.submit(job())
    metadata = cluster.pods[handle["name"]]["metadata"]
    cluster.becomes(handle, "Running", RUNNING)
    metadata["deletionTimestamp"] = now()
    assert made.status(handle) == Status("running"), "it may still end normally"
    cluster.becomes(handle, "Running", terminated(143))
    assert made.status(handle) == Status("lost", reason="its pod was ended: Deleted")
    cluster.becomes(handle, "Running", RUNNING, reason="NodeLost")
    metadata["deletionTimestamp"] = now(120)
    assert made.status(handle) == Status(
        "lost", reason="its pod is being deleted (NodeLost) and its node does not answer"
    )


def test_a_pod_that_cannot_be_deleted_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_runtime, "SUBMIT_TRIES", 3)
    monkeypatch.setattr(kubernetes_runtime, "SUBMIT_PAUSE_S", 0)
    made = runtime()
    cluster.becomes(made.submit(job()), "Failed", terminated(1))
    cluster.slow_deletes = 100
    with pytest.raises(TransientError, match=r"still exists\n.*kubectl -n retro delete pod retro-embed-chunks"):
        made.submit(job())


@pytest.mark.parametrize(
    ("refusal", "error", "said"),
    [
        ((403, 'pods is forbidden: User "x" cannot create'), ConfigurationError, r"cannot create[\s\S]*rbac.yaml"),
        ((401, "Unauthorized"), ConfigurationError, r"Unauthorized[\s\S]*service account"),
        ((422, "Pod is invalid: spec.containers[0].image"), ConfigurationError, r"invalid[\s\S]*pod template"),
        ((404, 'namespaces "retro" not found'), ConfigurationError, r"not found[\s\S]*create the namespace"),
        ((400, "unknown field"), ConfigurationError, r"unknown field[\s\S]*pod template"),
        ((403, 'pods "x" is forbidden: exceeded quota: gpus'), TransientError, r"quota[\s\S]*other pods to end"),
        ((403, 'pods "x" is forbidden: violates PodSecurity'), ConfigurationError, r"violates[\s\S]*pod template"),
        ((410, "the provided continue parameter is too old"), OutageError, "too old"),
        ((429, "too many requests"), OutageError, "too many"),
        ((500, "etcdserver: request timed out"), OutageError, "timed out"),
    ],
)
def test_refusals_say_what_to_do(cluster: Cluster, refusal: tuple[int, str], error: type[Exception], said: str) -> None:
    cluster.refuse = refusal
    with pytest.raises(error, match=said):
        runtime().submit(job())


@pytest.mark.parametrize("call", ["status", "logs", "cancel", "jobs"])
def test_every_refused_call_names_the_missing_permission(cluster: Cluster, call: str) -> None:
    made = runtime()
    handle = made.submit(job())
    cluster.refuse = (403, 'User "x" cannot do that')
    arguments = {"logs": (handle, None), "jobs": ()}.get(call, (handle,))
    with pytest.raises(ConfigurationError, match=r"pods(/log)? in namespace retro: User[\s\S]*rbac.yaml"):
        getattr(made, call)(*arguments)


def test_a_cluster_that_does_not_answer(tmp_path: Path, cluster: Cluster) -> None:
    config = (tmp_path / "kubeconfig").read_text()
    (tmp_path / "kubeconfig").write_text(re.sub(r"127.0.0.1:\d+", "127.0.0.1:9", config))
    with pytest.raises(OutageError, match="does not answer"):
        runtime().submit(job())


def test_no_cluster_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"kube_config_path": str(tmp_path / "none")}
    monkeypatch.setenv("AIRFLOW_CONN_TEST_CLUSTER", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    with pytest.raises(ConfigurationError, match=r"no Kubernetes cluster is configured[\s\S]*kubernetes.connection"):
        runtime().submit(job())


@pytest.mark.usefixtures("airflow_database")
def test_a_connection_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"'nowhere'[\s\S]*create it"):
        runtime(connection="nowhere").submit(job())
