"""Builds thousands of tiny shards with the DAG ``retro_dataset`` and a real scheduler, to measure the cost of a shard.

Starts a stack of its own in FOLDER (see demo/stack.py) and stops it at the end. Every shard has a few documents of real
text from the Python installation, so that nearly all of the time is the fixed cost of a shard.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

import make_corpus
from run import DAG
from stack import AIRFLOW_BIN, BUCKET, REPOSITORY, Stack

from benchmarks import live_run
from retro_ops.storage import read_ahead, store

DOCUMENTS = 3
CHARACTERS = 400
"""Documents per shard and characters per document, which give about 6 chunks per shard."""

VALIDATION_EVERY = 50


def pieces() -> Iterator[str]:
    """Pieces of the sources of the standard library, repeated without end."""
    while True:
        for _, source in make_corpus._modules():
            yield from (source[start : start + CHARACTERS] for start in range(0, len(source), CHARACTERS))


def upload(shards: int) -> str:
    """Upload ``shards`` files to a new prefix; every 50th is for validation."""
    prefix, text = f"s3://{BUCKET}/many/{shards}", pieces()
    files = {}
    for number in range(shards):
        split = "val" if number % VALIDATION_EVERY == VALIDATION_EVERY - 1 else "train"
        lines = [json.dumps({"text": piece}) + "\n" for piece in islice(text, DOCUMENTS)]
        files[f"{prefix}/{split}/{number:05}_{'val_' if split == 'val' else ''}code.jsonl"] = "".join(lines).encode()
    read_ahead.side_by_side(lambda of: store.write(*of), files.items())
    return prefix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--tasks", type=int, help="maximum number of tasks per stage (RETRO_MAPPED_TASKS)")
    parser.add_argument("--screenshot", type=Path, help="save a screenshot of the grid of the run to this file")
    arguments = parser.parse_args()
    if arguments.tasks:
        os.environ["RETRO_MAPPED_TASKS"] = str(arguments.tasks)
    stack = Stack(arguments.folder / "stack")
    os.environ.update(stack.environment())
    with live_run.running(stack):
        started = time.monotonic()
        prefix = upload(arguments.shards)
        print(f"{arguments.shards:,} shards uploaded in {time.monotonic() - started:.0f} s", flush=True)
        dataset, run_id = f"many_{arguments.shards}", f"many-{arguments.shards}-{int(time.time())}"
        conf = {"dataset": dataset, "preset": "tiny", "corpus": f"{prefix}/train", "validation_corpus": f"{prefix}/val"}
        live_run.run_once(stack, DAG, run_id, conf, arguments.shards)
        live_run.timed(dataset, "status")
        live_run.timed(dataset, "export", "--to", str(arguments.folder / "exported"))
        if arguments.screenshot:
            show = [str(AIRFLOW_BIN / "python"), str(REPOSITORY / "benchmarks/grid_page.py")]
            os.spawnv(os.P_WAIT, show[0], [*show, f"{stack.ui}/dags/{DAG}/runs/{quote(run_id)}", arguments.screenshot])


if __name__ == "__main__":
    main()
