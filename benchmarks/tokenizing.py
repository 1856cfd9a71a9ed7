"""Tokenizing: this package, the original and plain tokenizers in one run; the ids of every document are compared.

Uses real text of five categories (see real_text.py). The methods take turns on the same slices, each in one process, so
that other load on the machine affects all; rates are per core second. Then the stage itself runs on all of the text.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import real_text
from transformers import AutoTokenizer

from retro_ops.compute import device
from retro_ops.corpus import line_streams
from retro_ops.corpus.batches import Batch, batches
from retro_ops.execution import report
from retro_ops.stages.tokenize_and_chunk import BATCH_BYTES, BATCH_DOCUMENTS
from retro_ops.tokens import chunk_batches
from retro_ops.tokens.tokenizer import Tokenizer

SIZE = 64
LINE_BYTES = 2**23
PACKAGES = ("tokenizers", "transformers", "numpy")

Array = np.ndarray[Any, Any]
Way = Callable[[Batch], Array]


def slices(folder: Path) -> Iterator[Batch]:
    """Slices of the text, each with lines of all categories in turn."""
    sources = sorted(str(path) for path in folder.glob("*.jsonl"))
    each = [batches(line_streams.lines([uri], LINE_BYTES), BATCH_BYTES, BATCH_DOCUMENTS) for uri in sources]
    while each:
        for coming in list(each):
            found = next(coming, None)
            if found is None:
                each.remove(coming)
            else:
                yield found


def as_the_original(tokenizer: Any) -> Way:
    """The steps of the original (docs/formats.md): one call per document, padded as a list, arrays at the end."""

    def chunks(batch: Batch) -> Array:
        rows: list[list[int]] = []
        for line in batch.lines:
            ids = tokenizer(json.loads(line or b"")["text"])["input_ids"]
            ids += [tokenizer.pad_token_id] * (-len(ids) % SIZE)
            rows += [ids[start : start + SIZE] for start in range(0, len(ids), SIZE)]
        return np.array(rows, np.uint16)

    return chunks


def as_plain_tokenizers(tokenizer: Any) -> Way:
    """Encode batches and read the ids, nothing else."""
    backend = tokenizer.backend_tokenizer

    def chunks(batch: Batch) -> Array:
        texts = [json.loads(line or b"")["text"] for line in batch.lines]
        return np.array([len(entry.ids) for entry in backend.encode_batch_fast(texts)])

    return chunks


def ours(settings: chunk_batches.Settings) -> Way:
    """All work of a process of the stage, including parsing, document ids and the sidecar."""
    make = chunk_batches.maker(settings)
    return lambda batch: make(batch).chunked.chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--slices", type=int, default=15, help=f"slices of {BATCH_BYTES:,} bytes to compare")
    arguments = parser.parse_args()
    if not (arguments.folder / "text/train").exists():
        real_text.write(arguments.folder / "text")
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    tokenizer = Tokenizer.load(arguments.tokenizer)
    plain = AutoTokenizer.from_pretrained(arguments.tokenizer)
    settings = chunk_batches.Settings(
        tokenizer.encoding, True, SIZE, tokenizer.pad_id, "uint16", "fail", LINE_BYTES, "text"
    )
    without = chunk_batches.Settings(
        tokenizer.encoding, False, SIZE, tokenizer.pad_id, "uint16", "fail", LINE_BYTES, "text"
    )
    made = {"ours": ours(settings), "ours, without packages": ours(without)}
    ways: dict[str, Way] = {
        "the original's way": as_the_original(plain),
        "tokenizers, encode_batch_fast": as_plain_tokenizers(plain),
        **made,
        "json alone": lambda batch: np.array([len(json.loads(line or b"")["text"]) for line in batch.lines]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    megabytes, documents = [], 0
    for number, batch in enumerate(slices(arguments.folder / "text/train")):
        if number == arguments.slices:
            break
        megabytes.append(sum(len(line or b"") for line in batch.lines) / 1e6)
        documents += len(batch.lines)
        found = {}
        for name, way in ways.items():
            start = time.process_time()
            found[name] = way(batch)
            seconds[name].append(time.process_time() - start)
        for name in made:
            np.testing.assert_array_equal(found[name], found["the original's way"])
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    (package,) = {chunk_batches.maker(settings)(batch).package}
    print(f"{platform.machine()}, {device.cores()} cores; Python {platform.python_version()}, {versions}, {package}")
    print(f"{documents:,} documents, {sum(megabytes):.1f} MB of JSON lines; ids are equal on all")
    print(f"{'way':34}{'MB/core-s':>11}{'ratio':>8}{'least':>8}")
    base = seconds["the original's way"]
    for name, of in seconds.items():
        ratios = [a / b for a, b in zip(base, of, strict=True)]
        print(f"{name:34}{sum(megabytes) / sum(of):>11.2f}{sum(base) / sum(of):>8.1f}{min(ratios):>8.1f}")
    middle = statistics.median(a / b for a, b in zip(base, seconds["ours"], strict=True))
    print(f"median of the slices' ratios, ours: {middle:.1f}")

    folder = arguments.folder
    outputs = [f"--{name}-out={folder}/{name}.npy" for name in ("chunks", "seq2chunk-index", "chunk2seq-index")]
    (folder / "chunks.report.json").unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {k: v for k, v in os.environ.items() if k not in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
    command = [sys.executable, "-m", "retro_ops.cli", "tokenize-and-chunk", str(folder / "text/train"), *outputs]
    subprocess.run(
        [*command, "--tokenizer", arguments.tokenizer], check=True, stderr=subprocess.DEVNULL, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    done = report.require(str(folder / "chunks.report.json"), "tokenising")
    total = sum(path.stat().st_size for path in (folder / "text/train").glob("*.jsonl")) / 1e6
    out = sum(output["bytes"] for output in done["outputs"]) / 1e6
    print(
        f"the stage, by {done['details']['encoded_by']}: {total:.1f} MB in, {out:.1f} MB out, {done['seconds']:.1f} s "
        f"({total / done['seconds']:.1f} MB/s), {used:.1f} core-seconds with starting "
        f"({total / used:.1f} MB/core-s), peak {done['peak_rss_bytes'] / 2**20:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
