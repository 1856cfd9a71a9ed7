"""Object store: this package and the raw client (boto3's transfer manager) in turns, on a store that is started here.

Writing streams blocks of rows into one array. Reading goes through the array block by block, as in the stages, and as
one stream. The raw client transfers a file in memory with ten parallel requests. The limit is a copy within memory.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from seaweedfs import seaweedfs

from retro_ops.storage import read_ahead, s3, store
from retro_ops.storage.npy import NpyWriter, open_npy

ROWS = 8192
DIMENSION = 384


def write_array(uri: str, data: "np.ndarray[Any, Any]") -> None:
    with NpyWriter(uri, data.dtype, data.shape[1:], rows=len(data)) as out:
        for start in range(0, len(data), ROWS):
            out.append(data[start : start + ROWS])
        out.close()


def read_blocks(uri: str, rows: int) -> None:
    for _, block in open_npy(uri).blocks(rows):
        assert len(block)


def read_stream(uri: str) -> None:
    with store.open_stream(uri) as stream:
        while stream.read(2**20):
            pass


def delete(bucket: str, count: int) -> None:
    """Delete ``count`` objects one after the other, and as many as a folder."""
    for way in ("one after the other", "as a folder"):
        uris = [f"{bucket}/{way}/{number}" for number in range(count)]
        read_ahead.side_by_side(lambda uri: store.write(uri, b"x"), uris)
        start = time.monotonic()
        if way == "as a folder":
            store.at(bucket).delete_folder(f"{bucket}/{way}")
        else:
            for uri in uris:
                store.at(bucket).delete(uri)
        assert not store.at(bucket).list(f"{bucket}/{way}")
        print(f"delete {count:,} objects {way:24}{time.monotonic() - start:>10.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--delay", type=float, default=0.0, help="seconds added to each request, to simulate a distant store"
    )
    parser.add_argument("--objects", type=int, default=0, help="number of small objects to delete")
    of = parser.parse_args()
    rows = of.megabytes * 2**20 // (DIMENSION * 2)
    data = np.random.default_rng(0).integers(0, 2**15, (rows, DIMENSION), np.uint16).view(np.float16)
    size = data.nbytes
    print(f"{machine.describe()}; {size / 2**20:,.0f} MiB, SeaweedFS on the same machine, {of.delay} s delay")
    with tempfile.TemporaryDirectory() as folder, seaweedfs(Path(folder), tls=False) as server:
        os.environ.update(server.environment)
        bucket, name = server.bucket, server.bucket.removeprefix("s3://")
        client = s3._client()
        client.meta.events.register("before-send.s3", lambda **_: time.sleep(of.delay))
        works: dict[str, Callable[[], Any]] = {
            "write, ours": lambda: write_array(f"{bucket}/ours.npy", data),
            "write, boto3 upload_fileobj": lambda: client.upload_fileobj(io.BytesIO(data.data), name, "raw"),
            "read blocks of 6 MiB, ours": lambda: read_blocks(f"{bucket}/ours.npy", ROWS),
            "read blocks of 384 KiB, ours": lambda: read_blocks(f"{bucket}/ours.npy", ROWS // 16),
            "read as a stream, ours": lambda: read_stream(f"{bucket}/ours.npy"),
            "read, boto3 download_fileobj": lambda: client.download_fileobj(name, "raw", io.BytesIO()),
            "read, boto3 get_object": lambda: client.get_object(Bucket=name, Key="raw")["Body"].read(),
            "copy within memory": lambda: data.copy(),
        }
        if of.objects:
            delete(bucket, of.objects)
        taken: dict[str, list[float]] = {work: [] for work in works}
        for _ in range(of.turns):
            for work, do in works.items():
                start = time.monotonic()
                do()
                taken[work].append(time.monotonic() - start)
    for work, seconds in taken.items():
        print(f"{work:32}{size / min(seconds) / 1e6:>10,.0f} MB/s")


if __name__ == "__main__":
    main()
