"""The Docker runtime on a real engine."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from docker.errors import NotFound
from live_airflow import wait_for
from retro_airflow.deployment import Docker, Resources
from retro_airflow.runtimes import Handle, Job, Status, Task
from retro_airflow.runtimes.docker import DEPLOYMENT_LABEL, DockerRuntime

from docker import APIClient
from retro_ops.errors import ConfigurationError, TransientError

DEPLOYMENT = "runtime-tests"
TASK = Task("dag", "manual__2026-01-01T00:00:00+00:00", "shards.embed_chunks", 3)


@pytest.fixture(autouse=True)
def no_container_left(engine: APIClient) -> Iterator[None]:
    yield
    for container in engine.containers(all=True, filters={"label": f"{DEPLOYMENT_LABEL}={DEPLOYMENT}"}):
        engine.remove_container(container["Id"], v=True, force=True)


@pytest.fixture
def runtime(shell_image: str) -> DockerRuntime:
    return DockerRuntime(Docker(image=shell_image, pull="never"), DEPLOYMENT)


def sh(runtime: DockerRuntime, script: str, name: str = "retro-job", **resources: Any) -> Handle:
    return runtime.submit(Job(name, [script], {}, TASK, Resources(**resources)))


def end(runtime: DockerRuntime, handle: Handle) -> Status:
    wait_for(lambda: runtime.status(handle).state != "running")
    return runtime.status(handle)


def output(runtime: DockerRuntime, handle: Handle) -> list[str]:
    end(runtime, handle)
    return runtime.logs(handle, None)[0]


@pytest.mark.parametrize(("script", "state", "code"), [("exit 0", "succeeded", 0), ("exit 65", "failed", 65)])
def test_exit_code(runtime: DockerRuntime, script: str, state: str, code: int) -> None:
    status = end(runtime, sh(runtime, script))
    assert (status.state, status.exit_code) == (state, code)


def test_out_of_memory_says_so_and_names_the_limit(runtime: DockerRuntime) -> None:
    status = end(runtime, sh(runtime, "exec python3 -c 'bytearray(300 << 20)'", memory="128MiB"))
    assert (status.state, status.exit_code) == ("failed", 137)
    assert status.reason == "it ran out of memory (limit 0.1 GiB)"


def test_a_stage_is_not_root_and_writes_only_to_scratch(runtime: DockerRuntime, engine: APIClient) -> None:
    script = "id -u; touch /file || echo refused; touch /opt/retro/file || echo refused; touch /scratch/file && echo ok"
    handle = sh(runtime, f"{script}; grep -c . /proc/self/status; grep CapEff /proc/self/status; sleep 60")
    wait_for(lambda: len(runtime.logs(handle, None)[0]) >= 8)
    lines = [line for line in runtime.logs(handle, None)[0] if "Read-only" not in line]
    assert lines[:4] == ["10001", "refused", "refused", "ok"]
    assert lines[5].split() == ["CapEff:", "0000000000000000"]
    host = engine.inspect_container(handle["id"])["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert "no-new-privileges" in host["SecurityOpt"]


def test_limits_and_mounts_are_what_the_engine_received(
    shell_image: str, engine: APIClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = tmp_path_factory.mktemp("models")
    settings = Docker(
        image=shell_image, network="host", user="12345:12345", mounts=(f"{models}:/models:ro",), environment={"A": "b"}
    )
    runtime = DockerRuntime(settings, DEPLOYMENT)
    handle = sh(runtime, "sleep 60", cpus=1.5, memory="256MiB", shared_memory="32MiB")
    container = engine.inspect_container(handle["id"])
    host = container["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (1_500_000_000, 256 * 2**20, 256 * 2**20)
    assert (host["ShmSize"], host["NetworkMode"]) == (32 * 2**20, "host")
    assert container["Config"]["User"] == "12345:12345"
    assert "A=b" in container["Config"]["Env"]
    bound = next(mount for mount in container["Mounts"] if mount["Destination"] == "/models")
    assert (bound["Type"], bound["RW"]) == ("bind", False)


@pytest.mark.parametrize(("gpus", "count", "ids"), [(2, 2, []), (("0", "3"), 0, ["0", "3"])])
def test_a_gpu_request_is_what_the_engine_received(
    runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch, gpus: Any, count: int, ids: list[str]
) -> None:
    """The engine takes the request when it makes the container, and here refuses it when it starts it."""
    received: list[dict[str, Any]] = []
    client = runtime._client
    start = client.start

    def look_and_start(container: str) -> None:
        received.append(client.inspect_container(container)["HostConfig"]["DeviceRequests"][0])
        start(container)

    monkeypatch.setattr(client, "start", look_and_start)
    with pytest.raises(ConfigurationError, match=r"no GPU is available[\s\S]*NVIDIA Container Toolkit"):
        sh(runtime, "true", gpus=gpus)
    assert received == [
        {"Driver": "", "Count": count, "DeviceIDs": ids, "Capabilities": [["gpu"]], "Options": received[0]["Options"]}
    ]
    with pytest.raises(NotFound):
        client.inspect_container("retro-job")


def test_keys_go_through_the_environment_and_nowhere_else(shell_image: str, engine: APIClient) -> None:
    secret = "a-secret-that-must-not-leak"
    environment = {"AWS_SECRET_ACCESS_KEY": secret, "AIRFLOW__CORE__FERNET_KEY": "other", "PATH": "/of/the/worker"}
    runtime = DockerRuntime(Docker(image=shell_image), DEPLOYMENT)
    handle = runtime.submit(Job("retro-job", ["echo ${#AWS_SECRET_ACCESS_KEY}; env; sleep 60"], environment, TASK))
    wait_for(lambda: runtime.logs(handle, None)[0])
    container = engine.inspect_container(handle["id"])
    assert secret in str(container["Config"].pop("Env"))
    assert secret not in str(container)
    assert secret not in str(handle)
    lines = runtime.logs(handle, None)[0]
    assert lines[0] == str(len(secret))
    assert not any(line.startswith("AIRFLOW") or "/of/the/worker" in line for line in lines)
    assert any(line.startswith(f"RETRO_IMAGE={shell_image} sha256:") for line in lines)


def test_lines_arrive_while_the_stage_runs(runtime: DockerRuntime) -> None:
    handle = sh(runtime, "echo one; echo two >&2; read never </dev/zero; echo three")
    wait_for(lambda: len(runtime.logs(handle, None)[0]) == 2)
    lines, position = runtime.logs(handle, None)
    assert sorted(lines) == ["one", "two"]
    assert runtime.status(handle).state == "running"
    assert runtime.logs(handle, position) == ([], position)


def test_many_lines_come_once_and_in_order_however_they_are_read(runtime: DockerRuntime) -> None:
    count = "for i in range(3000):\n  print(i, flush=True)\n  i % 100 or time.sleep(0.05)"
    handle = sh(runtime, f'exec python3 -c \'import time\n{count}\nprint("end", end="")\'')
    lines: list[str] = []
    position = None
    while True:
        ended = runtime.status(handle).state != "running"
        new, position = runtime.logs(handle, position)
        lines += new
        if ended and not new:
            break
    assert lines == [*map(str, range(3000)), "end"]
    assert runtime.logs(handle, None)[0] == lines  # What a retry that reconnects prints.


def test_submit_finds_the_job_that_runs(runtime: DockerRuntime, shell_image: str, engine: APIClient) -> None:
    found: list[Handle] = []
    others = [DockerRuntime(Docker(image=shell_image), DEPLOYMENT) for _ in range(4)]
    threads = [threading.Thread(target=lambda r=r: found.append(sh(r, "sleep 60"))) for r in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle["id"] for handle in found}) == 1
    assert len(found) == 4
    assert sh(runtime, "sleep 60") == found[0]
    assert runtime.jobs() == [found[0]]
    assert found[0]["task"] == {
        "dag_id": TASK.dag_id, "run_id": TASK.run_id, "task_id": TASK.task_id, "map_index": TASK.map_index
    }  # fmt: skip


def test_submit_starts_again_after_an_end(runtime: DockerRuntime) -> None:
    first = sh(runtime, "exit 1")
    end(runtime, first)
    second = sh(runtime, "true")
    assert second["id"] != first["id"]
    assert runtime.status(first).state == "lost"


def test_a_container_whose_worker_died_before_it_started_it_is_started(
    runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runtime._client, "start", lambda container: sys.exit())
        with pytest.raises(SystemExit):
            sh(runtime, "echo ran")
    assert output(runtime, sh(runtime, "echo ran")) == ["ran"]


def test_cancel_removes_the_container_and_its_volume_within_seconds(runtime: DockerRuntime, engine: APIClient) -> None:
    handle = sh(runtime, "trap '' TERM; echo ready; while :; do sleep 1; done")
    wait_for(lambda: runtime.logs(handle, None)[0])
    (volume,) = [mount["Name"] for mount in engine.inspect_container(handle["id"])["Mounts"]]
    start = time.monotonic()
    runtime.cancel(handle)
    assert time.monotonic() - start < 6
    assert runtime.status(handle) == Status("lost", reason="container retro-job was removed")
    with pytest.raises(NotFound):
        engine.inspect_volume(volume)
    runtime.cancel(handle)  # Once more does no harm.


def test_jobs_of_other_deployments_are_not_ours(runtime: DockerRuntime, shell_image: str) -> None:
    sh(runtime, "sleep 60")
    assert DockerRuntime(Docker(image=shell_image), "somebody-else").jobs() == []


def test_a_missing_image(runtime: DockerRuntime) -> None:
    missing = DockerRuntime(Docker(image="retro-ops-test:missing", pull="never"), DEPLOYMENT)
    with pytest.raises(ConfigurationError, match=r"'retro-ops-test:missing' is not on the engine[\s\S]*make images"):
        sh(missing, "true")


def test_an_unreachable_engine() -> None:
    away = DockerRuntime(Docker(host="tcp://127.0.0.1:9"), DEPLOYMENT)
    with pytest.raises(TransientError, match=r"no Docker Engine answers at tcp://127.0.0.1:9[\s\S]*docker.host"):
        sh(away, "true")


def test_a_mount_that_is_not_there(shell_image: str) -> None:
    runtime = DockerRuntime(Docker(image=shell_image, mounts=("/no/such/folder:/x",)), DEPLOYMENT)
    with pytest.raises(ConfigurationError, match="no/such/folder"):
        sh(runtime, "true")
