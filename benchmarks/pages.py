"""Times of the pages in Airflow, and the memory of its API server, with many shards and versions.

.venv/airflow/bin/python benchmarks/pages.py [--shards 2000] [--versions 50] [--repeat 5]

The dataset lies in a local folder: the times are those of the pages, without a network.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/airflow"))

import httpx
from live_airflow import LiveAirflow, session_members
from stored_dataset import write_dataset

from retro_ops.plan import paths
from retro_ops.sizes import in_words


def memory(leader: int) -> str:
    """Resident memory of a session of processes."""
    total = 0
    for pid in session_members(leader):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(re.search(r"VmRSS:\s+(\d+)", status)[1]) if "VmRSS" in status else 0  # type: ignore[index]
    return in_words(1024 * total)


def cpu_ms(leader: int) -> float:
    """Processor time that a session of processes has used: a busy machine does not change it."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in session_members(leader)]
    return 1000 * sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--versions", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments)


def measure(home: Path, arguments: argparse.Namespace) -> None:
    root = home / "datasets"
    write_dataset(root, "news", arguments.shards, arguments.versions)
    airflow = LiveAirflow(home, {"RETRO_ROOT": str(root)})
    try:
        airflow.start_api_server()
        airflow.serialize_dags()
        server = airflow.server()
        token = httpx.get(f"{airflow.url}/auth/token", timeout=60).json()["access_token"]
        client = httpx.Client(base_url=airflow.url, headers={"Authorization": f"Bearer {token}"}, timeout=120)
        client.get("/api/v2/dags").raise_for_status()
        before = memory(server)
        print(f"{arguments.shards:,} shards, {arguments.versions} versions; milliseconds")
        print(f"{'page':24}{'first':>10}{'its CPU':>10}{'median':>10}")
        news = f"/retro/{paths.root_key(str(root))}/news"
        for name, address in addresses(news, arguments.versions).items():
            used = cpu_ms(server)
            first = timed(client, address)
            used = cpu_ms(server) - used
            median = statistics.median(timed(client, address) for _ in range(arguments.repeat))
            print(f"{name:24}{first:10,.0f}{used:10,.0f}{median:10,.0f}")
        print(f"memory of the API server: {before} before the first page, {memory(server)} after")
    finally:
        airflow.stop()


def addresses(news: str, last: int) -> dict[str, str]:
    version = f"{news}/versions/{last}"
    return {
        "datasets": "/retro/",
        "dataset": news,
        "comparison": f"{news}/diff?from={last - 1}&to={last}",
        "version": version,
        "shards": f"{version}/shards",
        "shards, filtered": f"{version}/shards?search=0999",
        "chunks": f"{version}/neighbours?shard=0001_news",
        "chunk, neighbours": f"{version}/neighbours?shard=0001_news&chunk=2",
        "bad records": f"{version}/bad-records?shard=0001_news",
        "card": f"{version}/card",
    }


def timed(client: httpx.Client, address: str) -> float:
    started = time.perf_counter()
    client.get(address).raise_for_status()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
