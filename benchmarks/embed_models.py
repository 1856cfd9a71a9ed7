"""Embedding with several models in one run: the backend that is chosen, its rate, and that of ``encode``.

A model is a folder, a hub name, or the name of a shape in random_models.py. Texts are made of the words of one text
and have the length of a chunk; both ways get them from memory, ours as token ids. ``share``: of the rate of the largest
product that the device reaches in half precision.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import random_models
import torch

from retro_ops.compute import device
from retro_ops.embedding.embedder import Embedder
from retro_ops.embedding.model import open_model
from retro_ops.tokens.encoders import exact
from retro_ops.tokens.packing import Rows

WORDS = 31
BLOCK_ROWS = 8192
"""Rows that the stage gives to a GPU at a time."""


def texts(count: int) -> list[str]:
    words = " ".join(topics.values()).split()
    starts = np.random.default_rng(0).integers(len(words) - WORDS, size=count)
    return [" ".join(words[start : start + WORDS]) for start in starts]


def peak(where: str) -> float:
    """Operations per second of a large product in half precision."""
    side, dtype = (8192, torch.bfloat16) if where == "cuda" else (1024, getattr(torch, device.precision(where).dtype))
    a, b = (torch.randn(side, side, dtype=dtype, device=where) for _ in range(2))
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if where == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / float(np.median(seconds[2:]))


def rate_of_encode(embedder: Embedder, sample: list[str]) -> tuple[float, Any]:
    network = embedder.model.network.float().to(embedder.device.chosen)
    kinds = {"prompt": embedder.model.prompt or None, "normalize_embeddings": True, "show_progress_bar": False}
    network.encode(sample[:64], **kinds)
    start = time.perf_counter()
    found = network.encode(sample, batch_size=256, **kinds)
    seconds = time.perf_counter() - start
    network.cpu()
    return len(sample) / seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tokenizer", help="of models with random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sample", type=int, default=2000, help="texts for encode")
    parser.add_argument("--seconds", type=float, default=6, help="about how long to measure our backend")
    arguments = parser.parse_args()
    where = device.choose(arguments.device, "torch")
    limit = peak(where.chosen)
    print(f"{where.chosen}: {limit / 1e12:.2f} TFLOP/s in a large product")
    print(
        f"{'model':22}{'way':28}{'dtype':>9}{'start s':>9}{'chunks/s':>10}{'encode':>8}{'ids':>6}"
        f"{'TFLOP/s':>9}{'share':>7}{'cosine':>9}"
    )
    sample = texts(arguments.sample)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = name
            if name in random_models.SHAPES:
                folder = random_models.write(random_models.SHAPES[name], arguments.tokenizer, Path(scratch))
            try:
                print(
                    f"{Path(name).name[:21]:22}{measured(folder, where, sample, arguments.seconds, limit)}", flush=True
                )
            except Exception as error:
                print(f"{name:22}{error!r}", flush=True)


def measured(folder: str, where: device.Device, sample: list[str], seconds: float, limit: float) -> str:
    start = time.perf_counter()
    embedder = Embedder(open_model(folder), where)
    embedder.prepare()
    started = time.perf_counter() - start
    if embedder.how["way"] == "encode":
        inputs: Any = sample
        ids = 0.0
    else:
        inputs = exact(embedder.encoding)([embedder.model.prompt + text for text in sample])
        ids = float(inputs.lengths.mean())
    found = np.concatenate(list(embedder.vectors([inputs])))
    repeats = 1 if ids == 0 or where.chosen == "cpu" else -(-BLOCK_ROWS // len(sample))
    block = Rows(np.tile(inputs.ids, repeats), np.tile(inputs.lengths, repeats)) if repeats > 1 else inputs
    rate = _rate(embedder, block, len(sample) * repeats, seconds)
    of_encode, wanted = rate_of_encode(embedder, sample)
    cosine = float((found.astype(np.float32) * wanted).sum(1).min())
    done = rate * embedder.model.operations(round(ids))
    return (
        f"{embedder.how['way'][:27]:28}{embedder.how['dtype']:>9}{started:>9.1f}{rate:>10,.0f}{of_encode:>8,.0f}"
        f"{ids:>6.0f}{done / 1e12:>9.2f}{done / limit:>7.0%}{cosine:>9.5f}"
        + (f"   {embedder.how['why']}" if ids == 0 else "")
    )


def _rate(embedder: Embedder, inputs: Any, rows: int, seconds: float) -> float:
    """Rows per second in about ``seconds``."""
    done = 0
    start = time.perf_counter()

    def parts() -> Iterator[Any]:
        nonlocal done
        while not done or time.perf_counter() - start < seconds:
            done += rows
            yield inputs

    for _ in embedder.vectors(parts()):
        pass
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
