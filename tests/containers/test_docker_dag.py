"""Whole runs of `retro_dataset` whose stages are containers, against a real object store, and what disturbs them."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from airflow_environment import REPOSITORY
from live_airflow import LiveAirflow, Task, kill_session, wait_for

from docker import APIClient

TEST_DEPLOYMENT = "dag-tests"
LABEL = f"retro-ops.deployment={TEST_DEPLOYMENT}"
MODEL_IN_IMAGE = "/opt/models/all-MiniLM-L6-v2"
EMBED_A: Task = ("shards.embed_chunks", 0)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    folder.chmod(0o777)  # The stages run as another user.
    return folder


@pytest.fixture(scope="module")
def airflow(
    tmp_path_factory: pytest.TempPathFactory, s3_server: Any, door_image: str, door: Path, model_dir: str
) -> Iterator[LiveAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    home.joinpath("runtime.toml").write_text(
        f"""
        runtime = "docker"
        deployment = "{TEST_DEPLOYMENT}"
        object_store.connection = "retro_object_store"
        [docker]
        image = "{door_image}"
        pull = "never"
        network = "host"
        mounts = ["{door}:/door"]
        [resources.default]
        memory = "3GiB"
        """
    )
    keys = s3_server.environment
    connection = {
        "conn_type": "aws",
        "login": keys["AWS_ACCESS_KEY_ID"],
        "password": keys["AWS_SECRET_ACCESS_KEY"],
        "extra": {"endpoint_url": keys["AWS_ENDPOINT_URL"], "region_name": keys["AWS_DEFAULT_REGION"]},
    }
    live = LiveAirflow(
        home,
        {
            "RETRO_RUNTIME_FILE": str(home / "runtime.toml"),
            "RETRO_RETRY_DELAY": "0.1",
            "AIRFLOW_CONN_RETRO_OBJECT_STORE": json.dumps(connection),
            "HF_HUB_OFFLINE": "1",
        },
        other_dags=["retro_housekeeping"],
    )
    try:
        live.start()
        yield live
    finally:
        live.stop()


@pytest.fixture(autouse=True)
def tidy(engine: APIClient, door: Path) -> Iterator[None]:
    yield
    for container in engine.containers(all=True, filters={"label": LABEL}):
        engine.remove_container(container["Id"], v=True, force=True)
    for path in door.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def client(s3_server: Any) -> Any:
    keys = s3_server.environment
    return boto3.client(
        "s3",
        endpoint_url=keys["AWS_ENDPOINT_URL"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_DEFAULT_REGION"],
    )


@pytest.fixture(scope="module")
def corpus(client: Any, s3_server: Any) -> str:
    """Help texts of Python: a shard for training, and a smaller one for validation."""
    from pydoc_data.topics import topics

    texts = [text[:1500] for _, text in sorted(topics.items())]
    bucket = s3_server.bucket.removeprefix("s3://")
    for name, of in (("train/a", texts[:20]), ("val/b", texts[20:30])):
        body = "".join(json.dumps({"text": text}) + "\n" for text in of)
        client.put_object(Bucket=bucket, Key=f"docker-corpus/{name}.jsonl", Body=body.encode())
    return f"{s3_server.bucket}/docker-corpus"


def conf(corpus: str, dataset: str, model: str = MODEL_IN_IMAGE, **more: Any) -> dict[str, Any]:
    return {
        "root": f"{corpus}-datasets/{dataset}",
        "dataset": "demo",
        "corpus": f"{corpus}/train/*.jsonl",
        "validation_corpus": f"{corpus}/val/*.jsonl",
        "tokenizer": model,
        "model": model,
        "index_type": "IVF16,Flat",
        "device": "cpu",
    } | more


def contents(client: Any, root: str) -> dict[str, bytes]:
    """Every object of a dataset that holds data, by its key below ``root``."""
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {
        key.removeprefix(prefix): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
        if key.endswith((".npy", ".index", ".zst", "spec.json"))
    }


def containers(engine: APIClient, **options: Any) -> list[dict[str, Any]]:
    return list(engine.containers(all=True, filters={"label": LABEL}, **options))


def wait_in(door: Path, stage: str, shard: str) -> None:
    wait_for(lambda: f" {stage} {shard}" in (door / "journal").read_text() if (door / "journal").exists() else False)


@pytest.mark.timeout(2400)
def test_a_run_in_containers_equals_a_build_in_one_process(
    airflow: LiveAirflow, corpus: str, client: Any, engine: APIClient, model_dir: str, s3_server: Any
) -> None:
    in_containers, in_process = conf(corpus, "docker"), conf(corpus, "process", model_dir)
    run = airflow.trigger(**in_containers)
    assert airflow.finish(run) == "success", airflow.states(run)
    command = [REPOSITORY / ".venv/stages/bin/retro-ops", "build"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in in_process.items()]
    done = subprocess.run(command, env={**os.environ, **s3_server.environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    of_containers, of_process = (contents(client, made["root"]) for made in (in_containers, in_process))
    assert list(of_containers) == list(of_process)
    assert {name.rpartition("/")[2] for name in of_containers} >= {"chunks.npy", "neighbours.npy", "train.index"}
    different = {name.rpartition("/")[2] for name in of_containers if of_containers[name] != of_process[name]}
    assert different <= {"embeddings.npy"}, "embeddings may differ in their last bits, nothing else"
    for name in of_containers:
        if name.endswith("embeddings.npy"):
            assert halves(of_containers[name]) == pytest.approx(halves(of_process[name]), abs=2e-3)
    assert containers(engine) == [], "a stage that ended leaves no container"
    assert_no_secret(airflow, run, s3_server.environment["AWS_SECRET_ACCESS_KEY"])


def halves(npy: bytes) -> list[float]:
    """The float16 values after the header of 128 bytes; the Airflow environment has no numpy."""
    return [value for (value,) in struct.iter_unpack("<e", npy[128:])]


def assert_no_secret(airflow: LiveAirflow, run: str, secret: str) -> None:
    """Neither in a log, nor in XCom, nor among the rendered fields of any task of the run."""
    path = f"dags/retro_dataset/dagRuns/{run}"
    seen = 0
    for (task, index), row in airflow.tasks(run).items():
        log = airflow.log(run, (task, index), row["try_number"])
        entries = airflow.call("GET", f"{path}/taskInstances/{task}/xcomEntries?map_index={index}")
        seen += log.count("To run this by hand") + entries["total_entries"]
        assert secret not in f"{log}{entries}{row}"
        assert "docker run --rm" in log or "To run this by hand" not in log
    assert seen > 20, "or the search would have found nothing in any case"


def test_killed_worker_reconnects_to_its_container(
    airflow: LiveAirflow, corpus: str, engine: APIClient, door: Path
) -> None:
    held = door / "hold.embed-chunks.a"
    held.touch()
    run = airflow.trigger(**conf(corpus, "killed"))
    wait_in(door, "embed-chunks", "a")
    (before,) = [entry["Id"] for entry in containers(engine) if "embed-chunks-0-" in entry["Names"][0]]
    os.kill(airflow.tasks(run)[EMBED_A]["pid"], signal.SIGKILL)
    wait_for(lambda: airflow.tasks(run)[EMBED_A]["try_number"] == 2 and airflow.states(run)[EMBED_A] == "running")
    wait_for(lambda: "Reconnecting" in airflow.log(run, EMBED_A, 2))
    (after,) = [entry["Id"] for entry in containers(engine) if "embed-chunks-0-" in entry["Names"][0]]
    assert after == before
    held.unlink()
    wait_for(lambda: airflow.states(run)[EMBED_A] == "success", 600)
    airflow.stop_run(run)
    assert (door / "journal").read_text().count(" embed-chunks a\n") == 1, "there was one container in all"
    assert "a is held for the 1. time" in airflow.log(run, EMBED_A, 2)


def test_marking_a_running_task_failed_ends_its_container(
    airflow: LiveAirflow, corpus: str, engine: APIClient, door: Path
) -> None:
    (door / "hold.plan.-").touch()
    run = airflow.trigger(**conf(corpus, "failed"))
    wait_in(door, "plan", "-")
    wait_for(lambda: airflow.states(run)["plan", -1] == "running")
    start = time.monotonic()
    airflow.call("PATCH", f"dags/retro_dataset/dagRuns/{run}/taskInstances/plan", {"new_state": "failed"})
    wait_for(lambda: not containers(engine))
    print(f"gone after {time.monotonic() - start:.1f} s", file=sys.stderr)
    assert airflow.finish(run) == "failed"


def test_out_of_memory_says_so_and_is_retried(airflow: LiveAirflow, corpus: str) -> None:
    run = airflow.trigger(**conf(corpus, "memory", resources={"plan": {"memory": "96MiB"}}))
    assert airflow.finish(run) == "failed"
    assert airflow.tasks(run)["plan", -1]["try_number"] == 4, "the DAG retries three times"
    log = airflow.log(run, ("plan", -1), 1)
    assert "ran out of memory (limit 0.1 GiB)" in log
    assert "give it more memory" in log


def test_housekeeping_ends_an_orphaned_container(
    airflow: LiveAirflow, corpus: str, engine: APIClient, door: Path
) -> None:
    def housekeeping(method: str, path: str = "", body: Any = None) -> Any:
        return airflow.call(method, f"dags/retro_housekeeping{path}", body)

    def is_idle() -> bool:
        return all(run["state"] == "success" for run in housekeeping("GET", "/dagRuns")["dag_runs"])

    # No scheduled run may come before the container is seen.
    wait_for(is_idle)
    housekeeping("PATCH", body={"is_paused": True})
    wait_for(is_idle)
    (door / "hold.plan.-").touch()
    run = airflow.trigger(**conf(corpus, "orphan"))
    wait_in(door, "plan", "-")
    wait_for(lambda: airflow.states(run)["plan", -1] == "running")
    # The worker is dead when the task is marked failed, so no process ends the container. So is the scheduler, which
    # would otherwise start a second try.
    assert airflow.scheduler
    kill_session(airflow.scheduler)
    airflow.call("PATCH", f"dags/retro_dataset/dagRuns/{run}/taskInstances/plan", {"new_state": "failed"})
    airflow.start_scheduler()
    airflow.finish(run)
    time.sleep(2)
    assert len(containers(engine)) == 1
    housekeeping("PATCH", body={"is_paused": False})
    sweep = housekeeping("POST", "/dagRuns", {"logical_date": None})
    wait_for(lambda: not containers(engine))
    wait_for(lambda: housekeeping("GET", f"/dagRuns/{sweep['dag_run_id']}")["state"] == "success")
