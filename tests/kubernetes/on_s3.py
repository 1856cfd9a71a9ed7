"""Datasets in the object store that pods and processes of this machine share."""

import json
import os
import struct
import subprocess
from typing import Any

import boto3
from seaweedfs import S3, STAGES_BIN

MODEL_IN_IMAGE = "/opt/models/all-MiniLM-L6-v2"


class Objects:
    def __init__(self, server: S3) -> None:
        keys = server.environment
        self.server = server
        self.bucket = server.bucket.removeprefix("s3://")
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=keys["AWS_ENDPOINT_URL"],
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            region_name=keys["AWS_DEFAULT_REGION"],
        )

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def write(self, key: str, texts: list[str]) -> str:
        """A shard: a JSON line for each text."""
        body = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body.encode())
        return self.uri(key)

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def data(self, prefix: str) -> dict[str, bytes]:
        """Every object below ``prefix`` that holds data of a dataset, by the rest of its key."""
        ends = (".npy", ".index", ".zst", "spec.json")
        return {key.removeprefix(prefix): self.read(key) for key in self.keys(prefix) if key.endswith(ends)}

    def retro_ops(self, *arguments: str) -> None:
        """A stage as a process of this machine."""
        environment = {**os.environ, **self.server.environment, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [STAGES_BIN / "retro-ops", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]


def largest_difference(one: bytes, other: bytes) -> float:
    """Between the float16 values of two .npy files; the Airflow environment has no numpy."""
    (left, right) = (struct.unpack(f"<{(len(npy) - 128) // 2}e", npy[128:]) for npy in (one, other))
    assert len(left) == len(right) > 0
    return max(abs(a - b) for a, b in zip(left, right, strict=True))
