"""Embedding: this package, the original, plain sentence-transformers and the limit of the hardware in one run.

Chunks are real text (see real_text.py), repeated if more are requested; ``--chunks`` gives an existing array. The
original and this package alternate on the same chunks, so that other load on the machine affects both. Then the stage
itself runs as a process that reads from and writes to a store: FOLDER may be s3://…
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import real_text
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from retro_ops.compute import device
from retro_ops.embedding.embedder import Embedder
from retro_ops.embedding.model import open_model
from retro_ops.execution import report
from retro_ops.storage import store
from retro_ops.storage.npy import NpyWriter
from retro_ops.tokens import packing
from retro_ops.tokens.tokenizer import Tokenizer

ROUNDS = 5
K = 4
REPEATED_ROWS = 2**16
PACKAGES = ("torch", "sentence-transformers", "transformers", "tokenizers", "numpy")

Array = NDArray[Any]


def stage(*words: object) -> list[dict[str, Any]]:
    """Run a stage and return its log."""
    command = [sys.executable, "-m", "retro_ops.cli", *map(str, words)]
    said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def real_chunks(folder: Path, tokenizer: str) -> Array:
    if not (folder / "text/train").exists():
        real_text.write(folder / "text")
    names = ("chunks", "seq2chunk-index", "chunk2seq-index")
    outputs = [word for name in names for word in (f"--{name}-out", folder / f"{name}.npy")]
    stage("tokenize-and-chunk", folder / "text/train", *outputs, "--tokenizer", tokenizer)
    return np.asarray(np.load(folder / "chunks.npy"))


def as_the_original(model: SentenceTransformer, tokenizer: Any, chunks: Array) -> Array:
    """The original (docs/formats.md): decode each chunk without special tokens, encode in batches; float16."""
    texts = tokenizer.batch_decode(chunks.tolist(), skip_special_tokens=True)
    found = model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(found).astype(np.float16)


def operations(config: Any, lengths: NDArray[np.int32]) -> float:
    """Mean number of multiplications and additions in the matrix products per row."""
    width, inner = config.hidden_size, config.intermediate_size
    a_token = config.num_hidden_layers * 2 * (4 * width * width + 2 * width * inner)
    attention = config.num_hidden_layers * 4 * width * (lengths.astype(np.float64) ** 2).mean()
    return float(a_token * lengths.mean() + attention)


def product_rate(where: str, dtype: torch.dtype, tokens: int, width: int, inner: int) -> float:
    """Operations per second of the largest matrix products of the model."""
    x = torch.randn(tokens, width, dtype=dtype, device=where)
    up = torch.randn(width, inner, dtype=dtype, device=where)
    down = torch.randn(inner, width, dtype=dtype, device=where)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        x = (x @ up) @ down
        if where != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        x = torch.randn(tokens, width, dtype=dtype, device=where)
    return 4 * tokens * width * inner / statistics.median(seconds)


def nearest(vectors: Array, among: int) -> NDArray[np.int64]:
    """The K most similar other rows for each of the first ``among`` rows."""
    exact = vectors.astype(np.float32)
    scores = exact[:among] @ exact.T
    scores[np.arange(among), np.arange(among)] = -2
    return np.argpartition(-scores, K, axis=1)[:, :K]


def agreement(found: Array, truth: Array) -> float:
    a, b = (nearest(vectors, min(1000, len(vectors))) for vectors in (found, truth))
    return float((a[:, :, None] == b[:, None, :]).any(axis=2).mean())


def alternating(ways: dict[str, Callable[[Array], Array]], rounds: Sequence[Array]) -> dict[str, list[float]]:
    """Chunks per second of each method in each round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for chunks in rounds:
        for name, way in ways.items():
            start = time.perf_counter()
            way(chunks)
            rates[name].append(len(chunks) / (time.perf_counter() - start))
    return rates


def write_repeated(chunks: Array, rows: int, uri: str) -> None:
    """Write ``rows`` chunks, shuffled again in each repetition."""
    rng = np.random.default_rng(0)
    with NpyWriter(uri, chunks.dtype, (chunks.shape[1],), rows) as out:
        for start in range(0, rows, REPEATED_ROWS):
            out.append(chunks[rng.integers(len(chunks), size=min(REPEATED_ROWS, rows - start))])
        out.close()


def steady(said: list[dict[str, Any]]) -> float | None:
    """Chunks per second between the first and the last progress line, without loading and compiling."""
    lines = [line for line in said if line.get("event") == "progress"]
    if len(lines) < 2:
        return None
    times = [np.datetime64(line["time"].removesuffix("+00:00")) for line in (lines[0], lines[-1])]
    return float((lines[-1]["done"] - lines[0]["done"]) / ((times[1] - times[0]) / np.timedelta64(1, "s")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder or s3:// prefix where the stage reads and writes")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", help="tokenizer of the chunks (default: that of the model)")
    parser.add_argument("--chunks", type=Path, help="array of chunks (default: real text, prepared here)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sample", type=int, default=1000, help="chunks per round of the comparison")
    parser.add_argument("--rows", type=int, default=4000, help="chunks for the stage")
    parser.add_argument("--inputs", nargs="+", default=["text", "ids"], help="values of --embed-input: text ids")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.tokenizer or arguments.model, pad_id=0)
    plain_tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        made = (
            np.load(arguments.chunks)
            if arguments.chunks
            else real_chunks(Path(scratch), arguments.tokenizer or arguments.model)
        )
    chunks = made[np.random.default_rng(0).permutation(len(made))]

    where = device.choose(arguments.device, "torch")
    name = torch.cuda.get_device_name() if where.chosen == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {device.cores()} cores; Python {platform.python_version()}", end="")
    print("".join(f", {package} {importlib.metadata.version(package)}" for package in PACKAGES))

    plain = SentenceTransformer(arguments.model, device=where.chosen)
    own = Embedder(open_model(arguments.model), where)
    own.prepare()
    ways: dict[str, Callable[[Array], Array]] = {
        "the original's way": lambda of: as_the_original(plain, plain_tokenizer, of)
    }
    for how in arguments.inputs:
        prepare = own.inputs(tokenizer, how)()
        ways[f"ours, {how}"] = lambda of, prepare=prepare: np.concatenate(list(own.vectors([prepare(of)])))
    half = getattr(torch, device.precision(where.chosen).dtype)
    faster = SentenceTransformer(arguments.model, device=where.chosen).to(half)
    ways[f"sentence-transformers, {str(half).removeprefix('torch.')}"] = lambda of: as_the_original(
        faster, plain_tokenizer, of
    )
    warm = chunks[: min(arguments.sample, 256)]
    for way in ways.values():
        way(warm)
    rounds = [chunks[i * arguments.sample : (i + 1) * arguments.sample] for i in range(ROUNDS)]
    rates = alternating(ways, [part for part in rounds if len(part) == arguments.sample])
    truth = as_the_original(plain, plain_tokenizer, rounds[0])
    print(f"\n{ROUNDS} rounds of {arguments.sample:,} chunks each, alternating, from memory to memory; {own.how}")
    print(f"{'way':34}{'chunks/s':>10}{'ratio':>8}{'mean cosine':>13}{'1 % below':>11}{f'neighbours@{K}':>14}")
    base = rates["the original's way"]
    for name, of in rates.items():
        found = ways[name](rounds[0])
        cosines = (found.astype(np.float32) * truth.astype(np.float32)).sum(axis=1)
        ratio = statistics.median(a / b for a, b in zip(of, base, strict=True))
        print(
            f"{name:34}{statistics.median(of):>10,.0f}{ratio:>8.2f}{cosines.mean():>13.5f}"
            f"{np.percentile(cosines, 1):>11.5f}{agreement(found, truth):>14.4f}",
            flush=True,
        )

    config = plain[0].model.config
    lengths = own.inputs(tokenizer, arguments.inputs[-1])()(chunks[:4096])
    assert isinstance(lengths, packing.Rows)
    of_a_row = operations(config, lengths.lengths)
    tokens = 1024 if where.chosen == "cpu" else 2**18
    limit = product_rate(where.chosen, half, tokens, config.hidden_size, config.intermediate_size) / of_a_row
    in_and_out = chunks.itemsize * chunks.shape[1] + 2 * own.model.dimension
    titles = ("chunks", "seconds", "chunks/s", "steady/s", "of limit")
    print(f"\n{'from the store to the store':34}" + "".join(f"{title:>11}" for title in titles))
    write_repeated(chunks, arguments.rows, f"{arguments.folder}/chunks.npy")
    for how in arguments.inputs:
        output = f"{arguments.folder}/{how}/embeddings.npy"
        store.at(output).delete_folder(f"{arguments.folder}/{how}")
        said = stage(
            "embed-chunks", f"{arguments.folder}/chunks.npy", output, "--model", arguments.model, "--device",
            where.chosen, "--tokenizer", arguments.tokenizer or arguments.model, "--embed-input", how,
        )  # fmt: skip
        found = report.require(f"{arguments.folder}/{how}/embeddings.report.json", "embedding")
        rate, flat = arguments.rows / found["seconds"], steady(said)
        print(
            f"{f'embed-chunks, {how}':34}{arguments.rows:>11,}{found['seconds']:>11.1f}{rate:>11,.0f}"
            f"{f'{flat:,.0f}' if flat else '-':>11}{(flat or rate) / limit:>11.0%}   {found['details']['way']}, "
            f"peak {found['peak_rss_bytes'] / 2**20:,.0f} MiB",
            flush=True,
        )
    print(
        f"limit {limit:,.0f} chunks/s: {of_a_row / 1e9:.2f} GFLOP a chunk ({lengths.lengths.mean():.1f} ids) at the "
        f"{limit * of_a_row / 1e12:.2f} TFLOP/s of the model's largest product in {half}; {in_and_out} bytes a chunk "
        f"in and out, {limit * in_and_out / 1e6:,.0f} MB/s at the limit; {os.cpu_count()} CPUs seen"
    )


if __name__ == "__main__":
    main()
