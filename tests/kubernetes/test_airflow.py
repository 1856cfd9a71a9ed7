"""Pods under a real scheduler: what kills a worker, a scheduler or the API server, and what users see of a pod.

The stage is `plan`, behind a door that holds it open; a run ends after it.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_airflow import LiveAirflow, Task, wait_for
from on_s3 import MODEL_IN_IMAGE, Objects
from one_node import NAMESPACE, OneNode, connection, wait_until
from retro_airflow.deployment import Kubernetes
from seaweedfs import S3
from test_dataset import object_store
from test_scheduler import Door, alive

DEPLOYMENTS = ("airflow-tests",)
PLAN: Task = ("plan", -1)
GRACE_S = 30
"""Of the pod template. The door ignores SIGTERM."""


@pytest.fixture(scope="module")
def door_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    folder.chmod(0o777)  # Stages run as another user.
    return folder


@pytest.fixture
def door(door_folder: Path) -> Iterator[Door]:
    door = Door(door_folder)
    door.clean()  # A test without it leaves a journal, too.
    yield door
    door.clean()


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, kubeconfig: Path, s3_server: S3, door_image: str, door_folder: Path
) -> Iterator[LiveAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    pod = yaml.safe_load(Path(Kubernetes().pod_template).read_text())
    pod["spec"]["volumes"] = [{"name": "door", "hostPath": {"path": str(door_folder)}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "door", "mountPath": "/door"}]
    (home / "pod.yaml").write_text(yaml.safe_dump(pod))
    (home / "runtime.toml").write_text(
        f"""
        runtime = "kubernetes"
        deployment = "airflow-tests"
        object_store.connection = "retro_object_store"
        [kubernetes]
        image = "{door_image}"
        namespace = "{NAMESPACE}"
        connection = "test_cluster"
        pod_template = "pod.yaml"
        """
    )
    live = LiveAirflow(
        home,
        {
            "RETRO_RUNTIME_FILE": str(home / "runtime.toml"),
            "RETRO_RETRY_DELAY": "0.1",
            "AIRFLOW_CONN_TEST_CLUSTER": connection(kubeconfig),
            "AIRFLOW_CONN_RETRO_OBJECT_STORE": object_store(s3_server),
        },
    )
    try:
        live.start()
        yield live
    finally:
        live.stop()


@pytest.fixture(scope="module")
def conf(s3_server: S3) -> dict[str, Any]:
    objects = Objects(s3_server)
    corpus = objects.write("airflow/corpus/a.jsonl", ["a document", "another document"])
    return {
        "root": objects.uri("airflow/datasets"),
        "dataset": "demo",
        "corpus": corpus,
        "tokenizer": MODEL_IN_IMAGE,
        "model": MODEL_IN_IMAGE,
        "index_type": "Flat",
        "device": "cpu",
        "plan_only": True,
    }


def uids(node: OneNode) -> list[str]:
    return [pod.metadata.uid for pod in node.pods()]


def is_watched_again(airflow: LiveAirflow, run: str) -> bool:
    """By a later try. On a slow machine a second one may lose its heartbeat, and a third takes its place."""
    row = airflow.tasks(run)[PLAN]
    number = row["try_number"]
    return number > 1 and row["state"] == "running" and "Reconnecting" in airflow.log(run, PLAN, number)


def test_a_killed_worker_leaves_its_pod_to_the_next_try(
    airflow: LiveAirflow, node: OneNode, door: Door, conf: dict[str, Any]
) -> None:
    held = door.close("plan")
    run = airflow.trigger(**conf)
    door.wait("plan")
    before = uids(node)
    os.kill(airflow.tasks(run)[PLAN]["pid"], signal.SIGKILL)
    wait_for(lambda: is_watched_again(airflow, run))
    assert uids(node) == before
    held.unlink()
    assert airflow.finish(run) == "success"
    assert len(door.pids("plan")) == 1, "there was one pod in all"
    assert "- is held for the 1. time" in airflow.log(run, PLAN, airflow.tasks(run)[PLAN]["try_number"])
    assert node.pods() == []


def test_a_killed_scheduler_leaves_its_pods_to_its_successor(
    airflow: LiveAirflow, node: OneNode, door: Door, conf: dict[str, Any]
) -> None:
    held = door.close("plan")
    run = airflow.trigger(**conf)
    door.wait("plan")
    before, first = uids(node), airflow.tasks(run)[PLAN]["pid"]
    assert airflow.scheduler
    airflow.scheduler.kill()
    airflow.scheduler.wait()
    airflow.start_scheduler()
    wait_for(lambda: is_watched_again(airflow, run))
    wait_for(lambda: not alive(first))  # The end of the first try does not end the pod.
    assert uids(node) == before
    held.unlink()
    assert airflow.finish(run) == "success"
    assert len(door.pids("plan")) == 1, "there was one pod in all"


def test_an_api_server_that_restarts_costs_no_try(
    airflow: LiveAirflow, node: OneNode, door: Door, conf: dict[str, Any]
) -> None:
    held = door.close("plan")
    run = airflow.trigger(**conf)
    door.wait("plan")
    node.stop("apiserver")
    try:
        wait_for(lambda: "The task waits up to 10 minutes" in airflow.log(run, PLAN, 1))
    finally:
        node.start("apiserver")
    held.unlink()
    assert airflow.finish(run) == "success"
    assert airflow.tasks(run)[PLAN]["try_number"] == 1
    assert len(door.pids("plan")) == 1, "there was one pod in all"


def test_marking_a_task_failed_ends_its_pod_within_the_grace_period(
    airflow: LiveAirflow, node: OneNode, door: Door, conf: dict[str, Any]
) -> None:
    door.close("plan")
    run = airflow.trigger(**conf)
    door.wait("plan")
    wait_for(lambda: airflow.states(run)[PLAN] == "running")
    began = time.monotonic()
    airflow.call("PATCH", f"dags/retro_dataset/dagRuns/{run}/taskInstances/plan", {"new_state": "failed"})
    wait_until(lambda: all(pod.metadata.deletion_timestamp for pod in node.pods()), 60)
    marked = time.monotonic()
    wait_until(lambda: not node.pods(), GRACE_S + 10)
    print(f"deleted after {marked - began:.1f} s, gone {time.monotonic() - marked:.1f} s later")
    assert airflow.finish(run) == "failed"


def test_clearing_a_running_task_replaces_its_pod(
    airflow: LiveAirflow, node: OneNode, door: Door, conf: dict[str, Any]
) -> None:
    held = door.close("plan")
    run = airflow.trigger(**conf)
    door.wait("plan")
    wait_for(lambda: airflow.states(run)[PLAN] == "running")
    (first,) = uids(node)
    body = {"dry_run": False, "dag_run_id": run, "task_ids": ["plan"], "only_failed": False}
    airflow.call("POST", "dags/retro_dataset/clearTaskInstances", body)
    wait_until(lambda: first not in uids(node), 60)
    held.unlink()
    assert airflow.finish(run) == "success"
    assert len(door.pids("plan")) == 2


@pytest.fixture
def one_gpu(node: OneNode) -> Iterator[None]:
    node.advertise_gpus(1)
    yield
    node.advertise_gpus(0)


@pytest.mark.usefixtures("one_gpu")
def test_of_two_stages_and_one_gpu_one_waits_and_says_so_in_its_log(
    airflow: LiveAirflow, door: Door, conf: dict[str, Any]
) -> None:
    held = door.close("plan")
    of_a_gpu = {**conf, "resources": {"plan": {"gpus": 1}}}
    first = airflow.trigger(**of_a_gpu)
    door.wait("plan")
    second = airflow.trigger(**of_a_gpu | {"dataset": "second"})
    wait_for(lambda: airflow.states(second).get(PLAN) == "running")
    wait_for(lambda: "1 Insufficient nvidia.com/gpu." in airflow.log(second, PLAN, 1))
    assert len(door.pids("plan")) == 1
    held.unlink()
    for run in (first, second):
        assert airflow.finish(run) == "success"
        assert airflow.tasks(run)[PLAN]["try_number"] == 1


def test_a_stage_that_runs_out_of_memory_says_so_and_is_retried(
    airflow: LiveAirflow, node: OneNode, conf: dict[str, Any]
) -> None:
    run = airflow.trigger(**conf, resources={"plan": {"memory": "64MiB"}})
    wait_for(lambda: airflow.tasks(run).get(PLAN, {}).get("try_number", 0) > 1)
    log = airflow.log(run, PLAN, 1)
    assert "it ran out of memory (limit 0.1 GiB)" in log
    assert "give it more memory" in log
    airflow.stop_run(run)
    wait_until(lambda: not node.pods())
