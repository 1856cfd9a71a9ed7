"""An eviction in the middle of embedding, as when a cloud takes back a spot node: the next pod goes on."""

import json
import time

import pytest
from on_s3 import MODEL_IN_IMAGE, Objects
from one_node import NAMESPACE, STAGE_IMAGE, OneNode, wait_until
from retro_airflow.deployment import Kubernetes, Resources
from retro_airflow.runtimes import Job, Position, Task
from retro_airflow.runtimes.kubernetes import KubernetesRuntime
from seaweedfs import S3

DEPLOYMENTS = ("spot",)
BLOCK_ROWS = 1024
"""Rows of a step of `embed-chunks` on a CPU, in retro_ops/stages/embed_chunks.py."""


@pytest.mark.usefixtures("connected")
def test_an_eviction_in_the_middle_of_embedding_costs_a_block_at_most(
    node: OneNode, s3_server: S3, model_dir: str
) -> None:
    from pydoc_data.topics import topics

    objects = Objects(s3_server)
    corpus = objects.write("spot/corpus.jsonl", [text for _, text in sorted(topics.items())])
    folder = objects.uri("spot")
    outputs = [f"--{name}-out={folder}/{file}.npy" for name, file in NAMES.items()]
    objects.retro_ops("tokenize-and-chunk", corpus, *outputs, "--tokenizer", model_dir)
    total = json.loads(objects.read("spot/chunks.report.json"))["counts"]["chunks"]
    assert total > BLOCK_ROWS

    runtime = KubernetesRuntime(Kubernetes(namespace=NAMESPACE, connection="test_cluster", image=STAGE_IMAGE), "spot")
    model = ["--model", MODEL_IN_IMAGE, "--tokenizer", MODEL_IN_IMAGE, "--device", "cpu"]
    arguments = ["embed-chunks", f"{folder}/chunks.npy", f"{folder}/pod/embeddings.npy", *model]
    job = Job("retro-embed-chunks-spot", arguments, {}, Task("dag", "run", "embed_chunks", 0), Resources())
    handle = runtime.submit(job)
    position: Position = None
    computed = 0

    def follow() -> int:
        nonlocal position, computed
        lines, position = runtime.logs(handle, position)
        events = [json.loads(line) for line in lines if line.startswith("{")]
        computed = max([computed, *(event["done"] for event in events if event.get("event") == "progress")])
        return computed

    # A checkpoint is there, and rows after it are computed.
    wait_until(lambda: objects.keys("spot/pod/") and follow() >= BLOCK_ROWS, 240, lambda: runtime.logs(handle, None))
    node.evict(job.name)
    wait_until(lambda: (follow(), runtime.status(handle).state)[1] == "lost", 60)

    began = time.monotonic()
    second = runtime.submit(job)
    assert second["uid"] != handle["uid"]
    wait_until(lambda: runtime.status(second).state != "running", 300)
    assert runtime.status(second).state == "succeeded", runtime.logs(second, None)
    report = json.loads(objects.read("spot/pod/embeddings.report.json"))
    assert report["counts"] == {"chunks": total}
    resumed = report["details"]["resumed_at"]
    assert 0 < resumed < total
    assert computed - resumed <= BLOCK_ROWS, "no more than one block was lost"
    print(f"{total} chunks: evicted after {computed}, resumed at {resumed}, {time.monotonic() - began:.0f} s more")


NAMES = {"chunks": "chunks", "seq2chunk-index": "seq2chunk", "chunk2seq-index": "chunk2seq"}
