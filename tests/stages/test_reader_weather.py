"""Opening, reading and exporting on S3 while versions are published, prune runs and the network drops requests."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from nightly import Nights, three_versions
from runs import call
from store_proxy import Weather, store_proxy

from retro_data import Dataset, open_dataset
from retro_ops.storage import store
from retro_ops.storage.s3_client import client

REPOSITORY = Path(__file__).resolve().parents[2]
READING_S = 15.0

KINDS = (
    *("500", "503", "slow down", "trickle", "dropped request", "reset request", "lost reply", "reset reply"),
    *("truncated reply", "reset in the reply", "stale list", "outage"),
)


def digest(dataset: Dataset) -> str:
    """Of every row of a version with its neighbours: tokens, ids, distances and retrieved tokens of both splits."""
    found = hashlib.sha256()
    for split in dataset.splits.values():
        rows = split[:]
        for array in (rows.tokens, rows.neighbours, rows.distances, rows.retrieved()):
            found.update(array.tobytes())
    return found.hexdigest()


READER = """
import itertools, json, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1] + "/tests/" + name for name in ("stages", "support")]
from runs import StageFailedError, call
from test_reader_weather import digest
from retro_data import open_dataset
from retro_ops.errors import RetroError
uri, folder, end = sys.argv[2], sys.argv[3], time.monotonic() + float(sys.argv[4])
root, name = uri.rsplit("/", 1)
for number in itertools.count():
    if time.monotonic() > end:
        break
    version, to = (1, 2, 3, None)[number % 4], f"{folder}/export-{number}"
    chosen = () if version is None else ("--version", version)
    try:
        with open_dataset(uri, version, cache=f"{folder}/cache-{number}") as dataset:
            print(json.dumps([dataset.version, digest(dataset)]), flush=True)
        if number % 2:
            call("export", "--root", root, "--dataset", name, "--to", to, "--only", "trainer", *chosen)
            found = json.loads(Path(to, "export.json").read_text())["version"]
            print(json.dumps([found, digest(open_dataset(to))]), flush=True)
    except (RetroError, StageFailedError) as error:
        print(json.dumps(["failed", str(error)]), flush=True)
"""


@pytest.mark.slow
def test_no_row_is_ever_wrong_or_mixed(built: Nights, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three_versions(built)
    uri, root = f"{s3}/weather/d", f"{s3}/weather"
    expected = {}
    for version in (1, 2, 3):
        with open_dataset(f"{built.root}/d", version, lease=False) as dataset:
            expected[version] = digest(dataset)
    assert len(set(expected.values())) == 3
    for path in store.at(built.root).list(built.root):
        store.write(f"{root}{path.removeprefix(built.root)}", store.read(path))
    weather = Weather(seed=3, share=0.15, kinds=KINDS, outage_s=1.0)
    with store_proxy(os.environ["AWS_ENDPOINT_URL"], weather) as endpoint:
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": endpoint,
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/reader",
        }
        words = [sys.executable, "-c", READER, str(REPOSITORY), uri, str(tmp_path), str(READING_S)]
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as reader:
            publish_and_prune(root, reader)
            assert reader.stdout
            answers = [json.loads(line) for line in reader.stdout]
        assert reader.returncode == 0
    client.cache_clear()
    seen = defaultdict(set)
    for version, content in answers:
        seen[version].add(content)
    read = {version: contents for version, contents in seen.items() if version != "failed"}
    assert read == {version: {expected[version]} for version in read}
    assert len(read) >= 2, seen
    assert sum(weather.met.values()) > 20, weather.met


def publish_and_prune(root: str, reader: subprocess.Popen[str]) -> None:
    """Make the versions current in turn, as a publishing run does, and remove one while readers are at work."""
    began = time.monotonic()
    pruned = False
    while reader.poll() is None:
        for version in (2, 3):
            call("rollback", "--root", root, "--dataset", "d", "--to", version)
            time.sleep(0.2)
        if not pruned and time.monotonic() - began > READING_S / 2:
            call("prune", "--root", root, "--dataset", "d", "--keep", 2, "--yes")
            pruned = True
