"""A dataset built, refreshed and repaired by the DAGs with every stage a pod, against one made without Airflow."""

import json
from pathlib import Path
from typing import Any

import pytest
from on_s3 import MODEL_IN_IMAGE, Objects, largest_difference
from one_node import NAMESPACE, STAGE_IMAGE, OneNode, connection
from seaweedfs import S3
from test_dag import load

DEPLOYMENTS = ("dataset",)


@pytest.fixture(scope="module")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


def object_store(server: S3) -> str:
    """An Airflow connection, as its variable."""
    keys = server.environment
    extra = {"endpoint_url": keys["AWS_ENDPOINT_URL"], "region_name": keys["AWS_DEFAULT_REGION"]}
    login = {"login": keys["AWS_ACCESS_KEY_ID"], "password": keys["AWS_SECRET_ACCESS_KEY"]}
    return json.dumps({"conn_type": "aws", **login, "extra": extra})


@pytest.fixture
def configured(node: OneNode, kubeconfig: Path, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runtime.toml").write_text(
        f"""
        runtime = "kubernetes"
        deployment = "dataset"
        object_store.connection = "retro_object_store"
        [kubernetes]
        image = "{STAGE_IMAGE}"
        namespace = "{NAMESPACE}"
        connection = "test_cluster"
        [resources.default]
        memory = "3GiB"
        """
    )
    monkeypatch.setenv("RETRO_RUNTIME_FILE", str(tmp_path / "runtime.toml"))
    monkeypatch.setenv("AIRFLOW_CONN_TEST_CLUSTER", connection(kubeconfig))
    monkeypatch.setenv("AIRFLOW_CONN_RETRO_OBJECT_STORE", object_store(s3_server))


@pytest.mark.usefixtures("configured", "airflow_database")
def test_a_dataset_made_by_pods_equals_one_made_by_a_process(node: OneNode, s3_server: S3, model_dir: str) -> None:
    """Built, refreshed after a file was added, and repaired: each publishes a version."""
    from pydoc_data.topics import topics

    objects = Objects(s3_server)
    texts = [text[:3000] for _, text in sorted(topics.items())][:32]
    for index, name in enumerate(("train/a", "train/b", "val/c")):
        objects.write(f"corpus/{name}.jsonl", texts[index:24:3])
    corpus = {"corpus": objects.uri("corpus/train/*.jsonl"), "validation_corpus": objects.uri("corpus/val/*.jsonl")}
    form = {"index_type": "IVF8,Flat", "device": "cpu"}
    by_pods, by_process = ({"root": objects.uri(where), "dataset": "demo"} for where in ("pods", "process"))

    run("retro_dataset", {**by_pods, **corpus, **form, "tokenizer": MODEL_IN_IMAGE, "model": MODEL_IN_IMAGE})
    build(objects, {**by_process, **corpus, **form, "tokenizer": model_dir, "model": model_dir})
    objects.write("corpus/train/d.jsonl", texts[24:])
    run("retro_refresh", {**by_pods, **corpus})
    build(objects, {**by_process, **corpus}, "--refresh")
    run("retro_repair", {**by_pods, "shards": ["b"]})
    build(objects, {**by_process, "shards": "b"}, "--repair")

    assert node.pods() == [], "a stage that ended leaves no pod"
    assert json.loads(objects.read("pods/demo/current.json"))["version"] == 3
    pods, process = objects.data("pods/"), objects.data("process/")
    assert list(pods) == list(process)
    assert {name.rpartition("/")[2] for name in pods} >= {"chunks.npy", "neighbours.npy", "train.index"}
    different = [name for name in pods if pods[name] != process[name]]
    assert {name.rpartition("/")[2] for name in different} <= {"embeddings.npy"}, "in their last bits, nothing else"
    assert all(largest_difference(pods[name], process[name]) < 2e-3 for name in different)


def build(objects: Objects, flags: dict[str, str], *how: str) -> None:
    """A whole run in one process, without Airflow."""
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    objects.retro_ops("build", *words, *how)


def run(dag: str, conf: dict[str, Any]) -> None:
    done = load(dag).test(run_conf=conf)
    tasks = done.get_task_instances()
    assert str(done.state) == "success", {task.task_id: task.state for task in tasks}
    for task in tasks:
        if task.operator == "StageOperator" and task.duration:
            print(f"{dag} {task.task_id} {task.map_index}: {task.duration:.1f} s")
