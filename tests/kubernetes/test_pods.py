"""The life of a pod on a real cluster, and what can end it. The stages' image runs a shell script here."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from one_node import GPU, NAMESPACE, OneNode, names, wait_until
from retro_airflow.deployment import Kubernetes, Resources
from retro_airflow.runtimes import Handle, Job, Position, Status, Task
from retro_airflow.runtimes import kubernetes as kubernetes_runtime
from retro_airflow.runtimes.kubernetes import KubernetesRuntime
from retro_airflow.runtimes.outages import bridged

from retro_ops.errors import ConfigurationError, TransientError

TASK = Task("retro_dataset", "manual__2026-11-24T00:00:00.000001+00:00", "shards.embed_chunks", 3)
LONG = "d" + "-" * 30 + "d"
DEPLOYMENTS = ("pods", "others", LONG)
NAME = "retro-embed-chunks-3-0123456789ab"


@pytest.fixture
def runtime(shell_image: str, connected: None) -> KubernetesRuntime:
    return made(shell_image)


def made(image: str, **settings: Any) -> KubernetesRuntime:
    chosen = {"namespace": NAMESPACE, "connection": "test_cluster", "image": image} | settings
    return KubernetesRuntime(Kubernetes.model_validate(chosen), "pods")


def sh(runtime: KubernetesRuntime, script: str, name: str = NAME, **resources: Any) -> Handle:
    return runtime.submit(Job(name, ["embed-chunks", script], {}, TASK, Resources.model_validate(resources)))


class Watch:
    """A job as the operator watches it: its status, and its lines as they come."""

    def __init__(self, runtime: KubernetesRuntime, handle: Handle) -> None:
        self.runtime, self.handle = runtime, handle
        self.lines: list[str] = []
        self.position: Position = None

    def once(self) -> Status:
        status = bridged(lambda: self.runtime.status(self.handle))
        lines, self.position = bridged(lambda: self.runtime.logs(self.handle, self.position))
        self.lines += lines
        return status

    def waits_for(self, reason: str) -> None:
        wait_until(lambda: reason in self.once().reason, 60, lambda: self.once().reason)

    def says(self, line: str) -> None:
        """Until it has written ``line``."""
        wait_until(lambda: self.once() and line in self.lines, 60, lambda: f"{self.lines}")

    def end(self, timeout_s: float = 90) -> Status:
        wait_until(lambda: self.once().state != "running", timeout_s, lambda: f"{self.once()} {self.lines[-3:]}")
        return self.once()


# --- its normal life


@pytest.mark.parametrize(("script", "state", "code"), [("exit 0", "succeeded", 0), ("exit 65", "failed", 65)])
def test_exit_code(runtime: KubernetesRuntime, script: str, state: str, code: int) -> None:
    status = Watch(runtime, sh(runtime, script)).end()
    assert (status.state, status.exit_code) == (state, code)


def test_the_first_line_arrives_within_seconds(runtime: KubernetesRuntime) -> None:
    began = time.monotonic()
    Watch(runtime, sh(runtime, "echo on; sleep 60")).says("on")
    print(f"first line after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 30


def test_lines_arrive_while_the_stage_runs_and_none_is_lost(runtime: KubernetesRuntime, node: OneNode) -> None:
    script = "for i in $(seq 30); do echo line $i; echo error $i >&2; sleep 0.1; done; printf 'no line end'"
    watch = Watch(runtime, sh(runtime, script))
    watch.says("line 3")
    assert "line 30" not in watch.lines
    watch.end()
    assert [line for line in watch.lines if line.startswith("line")] == [f"line {i}" for i in range(1, 31)]
    assert [line for line in watch.lines if line.startswith("error")] == [f"error {i}" for i in range(1, 31)]
    assert watch.lines[-1] == "no line end"
    runtime.forget(watch.handle)
    wait_until(lambda: not node.pods())
    assert runtime.status(watch.handle).state == "lost"


def test_long_lines_arrive_whole(runtime: KubernetesRuntime) -> None:
    """Before Kubernetes 1.27 with another stamp after each 16 KiB, since the engine stores a line in such parts."""
    watch = Watch(runtime, sh(runtime, "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end"))
    watch.end()
    assert [line.count("x") for line in watch.lines] == [100000, 0]
    assert watch.lines[-1] == "end"


def test_a_log_that_rotates_is_followed_to_its_end(runtime: KubernetesRuntime) -> None:
    """The node keeps the last 1 MB and reads only that; here it rotates about five times."""
    pad = "x" * 1000
    script = f"for i in $(seq 5000); do echo $i {pad}; [ $((i % 25)) = 0 ] && sleep 0.05; done; echo end"
    watch = Watch(runtime, sh(runtime, script))
    watch.end()
    numbers = [int(line.split()[0]) for line in watch.lines[:-1]]
    assert numbers == sorted(set(numbers)), "in order, and none twice"
    assert watch.lines[-1] == "end"
    assert len(numbers) > 2500, "at most what was written between the last look and a rotation is lost"


def test_submit_finds_the_pod_and_replaces_one_that_ended(runtime: KubernetesRuntime) -> None:
    first = sh(runtime, "sleep 3; exit 1")
    assert sh(runtime, "sleep 3; exit 1") == first
    assert Watch(runtime, first).end().exit_code == 1
    second = sh(runtime, "exit 0")
    assert second["uid"] != first["uid"]
    assert Watch(runtime, second).end().state == "succeeded"
    assert runtime.status(first).state == "lost"


def test_tries_that_race_share_a_pod(runtime: KubernetesRuntime, shell_image: str, node: OneNode) -> None:
    handles: list[Handle] = []
    threads = [threading.Thread(target=lambda: handles.append(sh(made(shell_image), "sleep 30"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(handles) == 6
    assert handles == handles[:1] * 6
    assert names(node.pods()) == [NAME]


def test_jobs_are_the_running_ones_of_this_deployment(runtime: KubernetesRuntime, shell_image: str) -> None:
    running, ended = sh(runtime, "sleep 60", "retro-a"), sh(runtime, "exit 0", "retro-b")
    other = KubernetesRuntime(runtime._settings, "others")
    other.submit(Job("retro-c", ["plan", "sleep 60"], {}, TASK, Resources()))
    Watch(runtime, ended).end()
    assert runtime.jobs() == [running]


def test_cancel_ends_a_stage_that_ignores_it_within_its_grace_period(runtime: KubernetesRuntime, node: OneNode) -> None:
    handle = sh(runtime, "trap '' TERM; echo on; while true; do sleep 0.1; done")
    Watch(runtime, handle).says("on")
    began = time.monotonic()
    runtime.cancel(handle)
    assert time.monotonic() - began < 2, "Airflow waits 5 s for a task that is killed"
    wait_until(lambda: runtime.status(handle).state == "lost", 30)
    wait_until(lambda: not node.pods(), 120)


# --- what a pod may and may not


def test_a_stage_is_confined(runtime: KubernetesRuntime) -> None:
    script = """id -u; touch /file 2>/dev/null || echo root is read-only; touch /scratch/file && echo scratch is not
    ls /var/run/secrets/kubernetes.io 2>/dev/null || echo no token; grep CapEff /proc/self/status | tr -s '\\t' ' '
    grep NoNewPrivs /proc/self/status | tr -s '\\t' ' '; df -m /dev/shm | awk 'END {print $2}'
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes
    echo $RETRO_IMAGE; echo key: ${AWS_ACCESS_KEY_ID:+given}"""
    watch = Watch(runtime, sh(runtime, script, memory="256MiB", cpus=0.5, shared_memory="64MiB", scratch="100MB"))
    assert watch.end().state == "succeeded"
    assert watch.lines == [
        "10001", "root is read-only", "scratch is not", "no token", "CapEff: 0000000000000000", "NoNewPrivs: 1",
        watch.lines[6], str(256 * 2**20), "retro-ops-test:shell", "key: given",
    ]  # fmt: skip


def test_names_and_labels_at_their_limits(shell_image: str, connected: None) -> None:
    runtime = KubernetesRuntime(Kubernetes(namespace=NAMESPACE, connection="test_cluster", image=shell_image), LONG)
    odd = Task("dag/ü 'x'", "scheduled__2026-11-24T00:00:00+00:00 {[\"']}", "group.task." + "t" * 200, 1023)
    name = "retro-" + "n" * 40 + "-1023-0123456"
    for stage in ("search-parts", "retrieve-neighbours"):
        handle = runtime.submit(Job(f"{name}{stage[:3]}"[-63:], [stage, "exit 0"], {}, odd, Resources()))
        assert Watch(runtime, handle).end().state == "succeeded"
        assert handle["task"]["run_id"] == odd.run_id


# --- what waits, and for what


def test_a_stage_for_which_no_node_is_large_enough_says_so(runtime: KubernetesRuntime, shell_image: str) -> None:
    handle = sh(runtime, "exit 0", memory="900GiB")
    Watch(runtime, handle).waits_for("Unschedulable: 0/1 nodes are available: 1 Insufficient memory.")
    assert made(shell_image, start_timeout_s=0.5).status(handle) == Status(
        "lost",
        reason="its pod did not start within 0 s: Unschedulable: 0/1 nodes are available: 1 Insufficient memory.",
    )


@pytest.fixture
def one_gpu(node: OneNode) -> Iterator[None]:
    yield
    node.advertise_gpus(0)


@pytest.mark.usefixtures("one_gpu")
def test_two_stages_take_turns_on_one_gpu(runtime: KubernetesRuntime, node: OneNode) -> None:
    first = Watch(runtime, sh(runtime, "echo first; sleep 8", "retro-first", gpus=1))
    first.waits_for("1 Insufficient nvidia.com/gpu.")
    node.advertise_gpus(1)
    first.says("first")
    second = Watch(runtime, sh(runtime, "echo second", "retro-second", gpus=1))
    second.waits_for("1 Insufficient nvidia.com/gpu.")
    assert second.lines == []
    assert first.end().state == second.end().state == "succeeded"
    spec = node.core.read_namespaced_pod("retro-second", NAMESPACE).spec
    assert spec.containers[0].resources.limits[GPU] == "1"


def test_a_tainted_node_takes_only_stages_that_tolerate_it(runtime: KubernetesRuntime, node: OneNode) -> None:
    node.change_node(spec={"taints": [{"key": GPU, "value": "present", "effect": "NoSchedule"}]})
    try:
        outside = Watch(runtime, sh(runtime, "exit 0", "retro-outside"))
        outside.waits_for("had taint {nvidia.com/gpu: present}, that the pod didn't tolerate")
        toleration = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
        inside = sh(runtime, "exit 0", "retro-inside", tolerations=[toleration])
        assert Watch(runtime, inside).end().state == "succeeded"
        assert outside.once().state == "running"
    finally:
        node.change_node(spec={"taints": None})
    assert outside.end().state == "succeeded"


def test_a_node_selector_is_met(runtime: KubernetesRuntime, node: OneNode) -> None:
    watch = Watch(runtime, sh(runtime, "exit 0", node_selector={"nvidia.com/gpu.product": "NVIDIA-H100"}))
    watch.waits_for("1 node(s) didn't match Pod's node affinity")
    node.change_node(metadata={"labels": {"nvidia.com/gpu.product": "NVIDIA-H100"}})
    try:
        assert watch.end().state == "succeeded"
    finally:
        node.change_node(metadata={"labels": {"nvidia.com/gpu.product": None}})


def test_an_image_that_cannot_be_pulled_fails_early(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_runtime, "COMPLAINT_S", 4.0)
    runtime = made("registry.invalid/retro-ops-stage:none")
    watch = Watch(runtime, sh(runtime, "exit 0"))
    status = watch.end()
    assert (status.state, status.exit_code) == ("failed", 78)
    assert status.reason.startswith("its pod cannot start: ")
    assert "ErrImagePull" in status.reason or 'Back-off pulling image "registry.invalid' in status.reason


def test_an_invalid_image_name_fails_at_once(connected: None) -> None:
    runtime = made("Not:An:Image")
    status = Watch(runtime, sh(runtime, "exit 0")).end()
    assert (status.state, status.exit_code) == ("failed", 78)
    assert "InvalidImageName" in status.reason


def test_a_missing_secret_fails_early(
    shell_image: str, connected: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_runtime, "COMPLAINT_S", 4.0)
    runtime = made(shell_image, pod_template=template(tmp_path, {"envFrom": [{"secretRef": {"name": "not-there"}}]}))
    status = Watch(runtime, sh(runtime, "exit 0")).end()
    assert (status.state, status.exit_code) == ("failed", 78)
    assert 'CreateContainerConfigError: secret "not-there" not found' in status.reason


def template(folder: Path, container: dict[str, Any], spec: dict[str, Any] | None = None) -> str:
    """Our pod template with other entries."""
    pod = yaml.safe_load(Path(Kubernetes().pod_template).read_text())
    pod["spec"] |= spec or {}
    pod["spec"]["containers"][0] |= container
    (folder / "pod.yaml").write_text(yaml.safe_dump(pod))
    return str(folder / "pod.yaml")


# --- what is refused


def test_a_quota_that_is_used_up_is_a_matter_for_a_retry(runtime: KubernetesRuntime, node: OneNode) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one", "namespace": NAMESPACE}}
    node.apply(quota | {"spec": {"hard": {"limits.memory": "1Gi"}}})
    try:
        wait_until(lambda: node.core.read_namespaced_resource_quota("one", NAMESPACE).status.hard)
        first = sh(runtime, "sleep 60", "retro-a", cpus=0.1, memory="700MiB")
        with pytest.raises(TransientError, match=r"exceeded quota: one[\s\S]*a retry waits for other pods to end"):
            sh(runtime, "exit 0", "retro-b", cpus=0.1, memory="700MiB")
        with pytest.raises(ConfigurationError, match=r"must specify limits.memory[\s\S]*resources"):
            sh(runtime, "exit 0", "retro-c")
        runtime.cancel(first)
        wait_until(lambda: not node.pods())
        wait_until(
            lambda: node.core.read_namespaced_resource_quota("one", NAMESPACE).status.used["limits.memory"] == "0"
        )
        second = sh(runtime, "exit 0", "retro-b", cpus=0.1, memory="700MiB")
        assert Watch(runtime, second).end().state == "succeeded"
    finally:
        node.core.delete_namespaced_resource_quota("one", NAMESPACE)


def test_what_a_policy_refuses_fails_with_its_message(runtime: KubernetesRuntime, node: OneNode) -> None:
    limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small", "namespace": NAMESPACE}}
    node.apply(limits | {"spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}})
    try:
        with pytest.raises(ConfigurationError, match=r"maximum memory usage per Container is 1Gi[\s\S]*resources"):
            sh(runtime, "exit 0", memory="2GiB")
    finally:
        node.core.delete_namespaced_limit_range("small", NAMESPACE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"namespace": "nowhere"}, r"cannot create resource[\s\S]*rbac.yaml"),
        ({"namespace": "airflow"}, r"cannot create resource[\s\S]*rbac.yaml"),
    ],
)
def test_another_namespace_is_out_of_reach(
    shell_image: str, connected: None, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        sh(made(shell_image, **settings), "exit 0")


def test_a_template_that_the_api_refuses(shell_image: str, connected: None, tmp_path: Path) -> None:
    runtime = made(shell_image, pod_template=template(tmp_path, {}, {"serviceAccountName": "nobody"}))
    with pytest.raises(ConfigurationError, match=r'serviceaccount "nobody" not found[\s\S]*pod template'):
        sh(runtime, "exit 0")
    runtime = made(shell_image)
    with pytest.raises(ConfigurationError, match=r"tolerations\[0\].effect[\s\S]*pod template"):
        sh(runtime, "exit 0", tolerations=[{"key": "a", "operator": "Exists", "effect": "Nope"}])


# --- what ends a pod


def test_a_deleted_pod_is_lost(runtime: KubernetesRuntime, node: OneNode) -> None:
    watch = Watch(runtime, sh(runtime, "echo on; sleep 60"))
    watch.says("on")
    node.core.delete_namespaced_pod(NAME, NAMESPACE, grace_period_seconds=2)
    status = watch.end()
    assert status.state == "lost"
    assert "deleted" in status.reason.lower()


def test_an_evicted_pod_is_lost(runtime: KubernetesRuntime, node: OneNode) -> None:
    watch = Watch(runtime, sh(runtime, "echo on; exec sleep 60"))
    watch.says("on")
    node.evict(NAME)
    assert watch.end().state == "lost"


def test_a_preempted_pod_is_lost(runtime: KubernetesRuntime, node: OneNode, shell_image: str, tmp_path: Path) -> None:
    node.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "urgent"}, "value": 9}
    )
    watch = Watch(runtime, sh(runtime, "echo on; exec sleep 60", cpus=1.5))
    watch.says("on")
    urgent = made(shell_image, pod_template=template(tmp_path, {}, {"priorityClassName": "urgent"}))
    second = sh(urgent, "exit 0", "retro-urgent", cpus=1.5)
    assert watch.end().state == "lost"
    assert Watch(urgent, second).end().state == "succeeded"


def test_out_of_memory_names_the_limit(runtime: KubernetesRuntime) -> None:
    status = Watch(runtime, sh(runtime, "exec python3 -c 'bytearray(300 << 20)'", memory="128MiB")).end()
    assert status == Status("failed", 137, "it ran out of memory (limit 0.1 GiB)")


def test_out_of_memory_of_a_process_beside_the_stage_is_named(runtime: KubernetesRuntime) -> None:
    script = "python3 -c 'bytearray(300 << 20)'; echo the stage goes on; exit 1"
    watch = Watch(runtime, sh(runtime, script, memory="128MiB"))
    assert watch.end() == Status("failed", 1, "it ran out of memory (limit 0.1 GiB)")
    assert watch.lines[-1] == "the stage goes on"


def test_a_full_scratch_ends_the_pod_and_says_so(runtime: KubernetesRuntime) -> None:
    script = "head -c 60000000 /dev/zero >/scratch/file; echo written; exec sleep 600"
    watch = Watch(runtime, sh(runtime, script, scratch="20MB"))
    status = watch.end(300)  # The kubelet measures volumes once in one or two minutes.
    assert status.state == "lost"
    assert "Evicted" in status.reason
    assert "exceeds the" in status.reason


def test_a_deadline_of_the_template_ends_the_pod(shell_image: str, connected: None, tmp_path: Path) -> None:
    runtime = made(shell_image, pod_template=template(tmp_path, {}, {"activeDeadlineSeconds": 4}))
    status = Watch(runtime, sh(runtime, "exec sleep 60")).end()
    assert status.state == "lost"
    assert "DeadlineExceeded" in status.reason


# --- what happens to the cluster meanwhile

COUNT = "for i in $(seq 120); do echo $i; sleep 0.1; done"
COUNTED = [str(i) for i in range(1, 121)]


def test_a_kubelet_that_is_restarted_disturbs_nothing(runtime: KubernetesRuntime, node: OneNode) -> None:
    watch = Watch(runtime, sh(runtime, COUNT))
    watch.says("5")
    node.stop("kubelet")
    time.sleep(3)
    node.start("kubelet")
    assert watch.end().state == "succeeded"
    assert watch.lines == COUNTED
    wait_until(node.is_ready)


def test_an_api_server_that_is_restarted_disturbs_nothing(runtime: KubernetesRuntime, node: OneNode) -> None:
    watch = Watch(runtime, sh(runtime, COUNT))
    watch.says("5")
    node.stop("apiserver")
    restart = threading.Timer(4, node.start, ["apiserver"])
    restart.start()
    assert watch.end().state == "succeeded"
    restart.join()
    assert watch.lines == COUNTED
    wait_until(node.is_ready)


def test_a_node_that_is_silent_for_a_while_is_waited_for(
    runtime: KubernetesRuntime, node: OneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_runtime, "TIMEOUTS_S", (2, 3))
    watch = Watch(runtime, sh(runtime, COUNT))
    watch.says("5")
    node.pause("kubelet")
    try:
        wait_until(lambda: watch.once().state == "running" and not node.is_ready(), 90)
    finally:
        node.go_on("kubelet")
    assert watch.end().state == "succeeded"
    assert watch.lines == COUNTED
    wait_until(node.is_ready)
