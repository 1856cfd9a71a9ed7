"""The compose stack as a user starts it: up, healthy, the tiny preset from end to end, down."""

import json
import os
import runpy
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import boto3
import httpx
import pytest
from airflow_environment import REPOSITORY
from live_airflow import free_port, wait_for

from docker import APIClient

DOCKER = os.environ.get("DOCKER", "docker")
UP_TIMEOUT_S = 300
KEYS = runpy.run_path(str(REPOSITORY / "docker/make_env.py"))["keys"]()
RUN_TIMEOUT_S = 2400


def compose(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DOCKER, "compose", *words],
        cwd=REPOSITORY,
        env={**os.environ, "COMPOSE_PROFILES": "cpu", **KEYS, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_file_is_sound(profile: str) -> None:
    checked = compose("config", "-q", COMPOSE_PROFILES=profile)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_gpu_is_reserved_and_the_gpu_file_is_used() -> None:
    config = json.loads(compose("config", "--format", "json", COMPOSE_PROFILES="gpu").stdout)
    services = config["services"]
    (device,) = services["stage-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["capabilities"], device["count"]) == (["gpu"], 1)
    assert services["scheduler"]["environment"]["RETRO_RUNTIME_FILE"] == "/opt/retro/runtime.gpu.toml"
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    raw_socket = [name for name, service in services.items() if "docker.sock" in str(service.get("volumes"))]
    assert raw_socket == ["docker-proxy"]


def test_without_keys_it_does_not_start() -> None:
    checked = compose("config", "-q", POSTGRES_PASSWORD="")
    assert checked.returncode != 0
    assert "docker/make_env.py" in checked.stderr


class Stack:
    def __init__(self) -> None:
        self.airflow_port, self.s3_port = str(free_port()), str(free_port())
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.airflow_port}", timeout=60)

    def compose(self, *words: str) -> subprocess.CompletedProcess[str]:
        # As many stages at a time as there are cores: more only wait for each other.
        settings = {"AIRFLOW_PORT": self.airflow_port, "S3_PORT": self.s3_port, "AIRFLOW_PARALLELISM": "3"}
        return compose("--project-name", "retro-test", *words, **settings)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        if "Authorization" not in self.api.headers:
            self.api.headers["Authorization"] = f"Bearer {self.api.get('/auth/token').json()['access_token']}"
        response = self.api.request(method, f"/api/v2/{path}", json=body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    def ask_the_proxy(self, method: str, path: str) -> int:
        """Status of a call that the scheduler's container sends to the socket proxy."""
        code = (
            "import http.client as h; c = h.HTTPConnection('docker-proxy', 2375); "
            f"c.request('{method}', '{path}'); print(c.getresponse().status)"
        )
        return int(self.compose("exec", "-T", "scheduler", "python3", "-c", code).stdout)


@pytest.fixture(scope="module")
def stack(engine: APIClient) -> Iterator[Stack]:
    stack = Stack()
    try:
        start = time.monotonic()
        up = stack.compose("up", "-d", "--no-build", "--wait", "--wait-timeout", str(UP_TIMEOUT_S))
        assert up.returncode == 0, f"{up.stderr}\n{stack.compose('logs', '--tail', '40').stdout}"
        print(f"healthy after {time.monotonic() - start:.0f} s")
        yield stack
    finally:
        stack.api.close()
        stack.compose("down", "--volumes", "--timeout", "5")


def test_every_service_that_stays_is_checked_for_its_health(stack: Stack) -> None:
    rows = [json.loads(line) for line in stack.compose("ps", "--format", "json").stdout.splitlines()]
    assert {row["Service"]: row["Health"] for row in rows} == dict.fromkeys(
        ("postgres", "store", "docker-proxy", "api-server", "scheduler", "dag-processor", "triggerer"), "healthy"
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_ping", 200),
        ("GET", "/v1.41/containers/json", 200),
        ("POST", "/v1.41/containers/absent/start", 404),
        ("POST", "/v1.41/containers/absent/exec", 403),
        ("POST", "/v1.41/containers/absent/attach", 403),
        ("GET", "/v1.41/containers/absent/archive?path=/", 403),
        ("GET", "/v1.41/secrets", 403),
        ("POST", "/v1.41/build", 403),
        ("GET", "/v1.41/containers/../info", 403),
        ("DELETE", "/v1.41/images/retro-ops-airflow", 403),
    ],
)
def test_the_socket_proxy_lets_only_the_runtime_through(stack: Stack, method: str, path: str, status: int) -> None:
    assert stack.ask_the_proxy(method, path) == status


@pytest.mark.timeout(3000)
def test_the_tiny_preset_runs_from_end_to_end(stack: Stack, engine: APIClient) -> None:
    def knows_the_dag() -> bool:
        return "retro_dataset" in {dag["dag_id"] for dag in stack.call("GET", "dags")["dags"]}

    wait_for(knows_the_dag, UP_TIMEOUT_S)
    start = time.monotonic()
    # Of the corpus that the form offers, the first shard of each category: to embed all of it takes minutes.
    form = stack.call("GET", "dags/retro_dataset/details")["params"]
    offered = {name: form[name]["value"] for name in ("corpus", "validation_corpus")}
    conf = {"preset": "tiny", **offered, "corpus": offered["corpus"].replace("/*", "/00_*")}
    run = stack.call("POST", "dags/retro_dataset/dagRuns", {"logical_date": None, "conf": conf})
    path = f"dags/retro_dataset/dagRuns/{run['dag_run_id']}"

    def ended() -> bool:
        return stack.call("GET", path)["state"] in ("success", "failed")

    wait_for(ended, RUN_TIMEOUT_S)
    tasks = stack.call("GET", f"{path}/taskInstances?limit=200")["task_instances"]
    states = {f"{task['task_id']}[{task['map_index']}]": task["state"] for task in tasks}
    skipped = {name for name, state in states.items() if state == "skipped"}
    of_a_recipe = ("sources.list_sources", "sources.list_source_files", "sources.split_corpus")
    of_duplicates = ("duplicates.list_shards_to_sign", "duplicates.sign_documents", "duplicates.find_duplicates")
    of_a_grid = ("cells.list_cells", "cells.search_parts")  # Everything fits on the device.
    of_a_large_corpus = ("samples.search_samples", "publish.validate_shards")
    unused = (*of_a_recipe, *of_duplicates, *of_a_grid, *of_a_large_corpus)
    assert skipped == {f"{task}[-1]" for task in unused}, "they were not requested"
    assert set(states.values()) == {"success", "skipped"}, f"{states}\n{stack.compose('logs', '--tail', '60').stdout}"
    print(f"{len(tasks)} tasks in {time.monotonic() - start:.0f} s")
    store = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{stack.s3_port}",
        aws_access_key_id=KEYS["S3_ACCESS_KEY"],
        aws_secret_access_key=KEYS["S3_SECRET_KEY"],
        region_name="us-east-1",
    )
    current = json.loads(store.get_object(Bucket="retro", Key="datasets/demo/current.json")["Body"].read())
    assert (current["counts"]["shards"], current["counts"]["chunks"] > 1500) == (4, True)
    assert not engine.containers(all=True, filters={"label": "retro-ops.deployment=compose"})
