"""Builds a corpus of hundreds of megabytes with one trigger of ``retro_dataset`` and prints where the time went.

Starts a stack of its own in FOLDER (see demo/stack.py) and stops it at the end. TEXT has the folders ``train`` and
``val`` of JSON lines, as written by real_text.py. All parameters but the preset are the defaults.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

from run import DAG
from stack import Stack

from benchmarks import live_run
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.storage import store

DATASET = "real"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--preset", default="standard")
    parser.add_argument(
        "--tasks", type=int, help="maximum number of tasks per stage (RETRO_MAPPED_TASKS), such as the number of GPUs"
    )
    arguments = parser.parse_args()
    if arguments.tasks:
        os.environ["RETRO_MAPPED_TASKS"] = str(arguments.tasks)
    stack = Stack(arguments.folder.resolve() / "stack")
    os.environ.update(stack.environment())
    files = {split: sorted((arguments.text / split).glob("*.jsonl")) for split in ("train", "val")}
    size = sum(path.stat().st_size for of in files.values() for path in of)
    print(f"{size / 1e6:,.0f} MB of text in {len(files['train'])} + {len(files['val'])} shards", flush=True)
    with live_run.running(stack):
        run_id = f"real-{int(time.time())}"
        conf = {
            "dataset": DATASET,
            "preset": arguments.preset,
            "corpus": str(arguments.text.resolve() / "train"),
            "validation_corpus": str(arguments.text.resolve() / "val"),
        }
        live_run.run_once(stack, DAG, run_id, conf, sum(map(len, files.values())))
        live_run.timed(DATASET, "status")
        plan = read_plan(paths.plan_uri(os.environ["RETRO_ROOT"], DATASET, run_id))
        for kind in ("json", "html"):
            arguments.folder.joinpath(f"card.{kind}").write_bytes(store.read(paths.card_uri(plan, kind)))
        for split, figures in json.loads(arguments.folder.joinpath("card.json").read_text())["quality"].items():
            print(f"recall of {split}: {figures['recall']:.4f} on {figures['sampled_rows']:,} rows")


if __name__ == "__main__":
    main()
