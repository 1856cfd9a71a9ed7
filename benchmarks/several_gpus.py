"""One GPU of a host against several: embedding, training and filling, and whole runs.

    python benchmarks/several_gpus.py embed FOLDER --tokenizer MODEL --chunks FILE
    python benchmarks/several_gpus.py train FOLDER
    python benchmarks/several_gpus.py tasks FOLDER --tokenizer MODEL --chunks FILE

Models have random weights, since only speed counts. Results of all numbers of GPUs must have the same bytes. ``tasks``
compares one task that uses all GPUs with a task for each, which has its share of the cores. Without a GPU it only shows
that it runs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import embed
import faiss
import machine
import numpy as np
import random_models
import torch
from tokenizers import Tokenizer

from benchmarks.whole_run import request_of
from retro_ops.build.steps import Step, flags, steps
from retro_ops.compute.device import Device, gpus
from retro_ops.compute.fp16_scores import prepare
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.index import filling, gpu_ivf, index_types, kmeans
from retro_ops.plan import grid, paths
from retro_ops.search.queries import count_queries

DIMENSION = 384
RUNS = {"minilm:ids": 4_000_000, "minilm:text": 3_000_000, "bge-base:text": 600_000}
"""Chunks for each GPU, by model and input."""

SPAN_WORDS, SPANS = 40, 24
"""Documents of ``tasks``: spans of words from random places of the text of the chunks, some 16 chunks in all."""


def environment(devices: Sequence[int]) -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def on_cores(count: int, first: int = 0) -> list[str]:
    return ["taskset", "-c", f"{first}-{first + count - 1}", sys.executable, "-m", "retro_ops.cli"]


def digest_of(uri: str | Path) -> str:
    with open(uri, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def of_embedding(of: argparse.Namespace) -> None:
    """Store to store, for 1, 2, 4, … GPUs; then text on one GPU with fewer cores."""
    chunks, cores = np.load(of.chunks), len(os.sched_getaffinity(0))
    counts = [count for count in (1, 2, 4, 8) if count <= len(of.devices)]
    print(f"{'model, input':24}{'GPUs':>5}{'cores':>6}{'chunks':>12}{'seconds':>9}{'chunks/s':>10}{'steady/s':>10}")
    print(f"{'':24}  of linear, bytes")
    for run in of.runs:
        name, how = run.split(":")
        model = random_models.write(random_models.SHAPES[name], of.tokenizer, of.folder / name)
        base = 0.0
        for count in counts:
            made = int(RUNS[run] * count * of.scale)
            embed.write_repeated(chunks, made, str(of.folder / "chunks.npy"))
            rate, _ = embedded(of, model, f"{name}, {how}", how, made, range(count), cores)
            base = base or rate
            print(f"{'':24}  {rate / base / count:.0%}", flush=True)
        if how == "text" and name == "minilm":
            made = int(2e6 * of.scale)
            embed.write_repeated(chunks, made, str(of.folder / "chunks.npy"))
            for few in (4, 8, 16):
                if few < cores:
                    embedded(of, model, f"{name}, {how}", how, made, [0], few)
            both = [embedded(of, model, f"{name}, {how}", how, made, range(count), cores) for count in counts]
            assert len({digest for _, digest in both}) == 1
            print(f"{'':24}  {both[-1][0] / both[0][0]:.2f} times as fast, the same bytes", flush=True)


def embedded(
    of: argparse.Namespace, model: str, title: str, how: str, rows: int, devices: Sequence[int], cores: int
) -> tuple[float, str]:
    """Steady chunks per second of `embed-chunks`, and the digest of its embeddings."""
    output = of.folder / "embedded" / "embeddings.npy"
    shutil.rmtree(output.parent, ignore_errors=True)
    words = ["embed-chunks", of.folder / "chunks.npy", output, "--model", model, "--tokenizer", of.tokenizer]
    words += ["--device", of.device, "--embed-input", how]
    command = [*on_cores(cores), *map(str, words)]
    began = time.monotonic()
    said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, env=environment(devices)).stderr
    seconds = time.monotonic() - began
    steady = embed.steady([json.loads(line) for line in said.splitlines() if line.startswith("{")])
    print(f"{title:24}{len(devices):>5}{cores:>6}{rows:>12,}{seconds:>9.1f}{rows / seconds:>10,.0f}", end="")
    digest = digest_of(output)
    print(f"{steady or 0:>10,.0f}   {digest}", flush=True)
    return steady or rows / seconds, digest


def of_training(of: argparse.Namespace) -> None:
    """k-means of ``--lists`` lists, then codes of ``--fill`` vectors in host memory."""
    prepare(Device(of.device, "benchmark"))
    draw = torch.Generator(of.devices[0]).manual_seed(0)
    centres = torch.randn(of.lists, DIMENSION, device=of.devices[0], generator=draw)
    points = torch.empty(of.vectors, DIMENSION, device=of.devices[0], dtype=torch.float16)
    for part in points.split(2**20):
        drawn = centres[torch.randint(of.lists, (len(part),), device=of.devices[0], generator=draw)]
        part[:] = torch.nn.functional.normalize(drawn + torch.randn(drawn.shape, device=of.devices[0], generator=draw))
    host = points[: of.fill].cpu().numpy()
    kmeans.kmeans(points[None, : 4 * of.lists], of.lists, 1, 0, devices=of.devices)  # Loads the libraries.
    print(
        f"\n{of.vectors:,} vectors, {of.lists:,} lists\n{'GPUs':>5}{'s/iteration':>13}{'TFLOP/s':>9}{'of linear':>11}"
    )
    made, first = {}, 0.0
    for count in (1, 2, 4, 8):
        if count > len(of.devices):
            break
        began = time.monotonic()
        found = kmeans.kmeans(points[None], of.lists, of.iterations, 0, devices=of.devices[:count])
        found = found.cpu()
        seconds = (time.monotonic() - began) / of.iterations
        first = first or seconds
        made[count] = found
        rate = 2 * of.vectors * of.lists * DIMENSION / seconds / 1e12
        print(f"{count:>5}{seconds:>13.2f}{rate:>9.0f}{first / seconds / count:>11.0%}", flush=True)
    assert all(torch.equal(found, made[1]) for found in made.values())
    print(f"the same centroids\n{'GPUs':>5}{'vectors/s':>13}{'of linear':>11}  (codes, and faiss adds them)")
    index = index_types.make_index(f"IVF{of.lists},PQ32", DIMENSION)
    trained = gpu_ivf.train(points[: 2 * of.lists], of.lists, 32, (1, 4), 0, of.devices)
    index.quantizer.add(trained.centroids[0].cpu().numpy())
    assert trained.codebooks is not None
    faiss.copy_array_to_vector(trained.codebooks.cpu().numpy().reshape(-1), index.pq.centroids)
    index.is_trained = True
    del points
    digests, first = set(), 0.0
    for count in made:
        index.reset()
        began = time.monotonic()
        blocks = [host[i : i + 16_384] for i in range(0, len(host), 16_384)]
        filling.fill_on(of.devices[:count], index, blocks, lambda _: None)
        rate = len(host) / (time.monotonic() - began)
        first = first or rate
        digests.add(hashlib.sha256(faiss.serialize_index(index)).hexdigest())
        print(f"{count:>5}{rate:>13,.0f}{rate / first / count:>11.0%}", flush=True)
    assert len(digests) == 1
    print("the same bytes")


def write_corpus(folder: Path, of: argparse.Namespace) -> None:
    """``--shards`` files of ``--documents`` documents each."""
    tokenizer = Tokenizer.from_file(str(Path(of.tokenizer) / "tokenizer.json"))
    words = " ".join(tokenizer.decode_batch(np.load(of.chunks).tolist())).split()
    folder.mkdir(parents=True)
    for shard in range(of.shards):
        draw = random.Random(shard)
        with (folder / f"{shard:02}.jsonl").open("w") as file:
            for _ in range(of.documents):
                starts = [draw.randrange(len(words) - SPAN_WORDS) for _ in range(SPANS)]
                text = " ".join(word for start in starts for word in words[start : start + SPAN_WORDS])
                file.write(json.dumps({"text": text}) + "\n")


def perform(step: Step, devices: Sequence[int], over: str = "shard") -> float:
    """Seconds of the stage in a process for each of ``devices``; in one for all of them if it maps over nothing."""
    names, cores = step.arguments.get(over), max(1, len(os.sched_getaffinity(0)) // len(devices))
    if names is None:
        return whole(step)
    began = time.monotonic()
    running = []
    for number, device in enumerate(devices):
        if some := names[number :: len(devices)]:
            command = [*on_cores(cores, number * cores), step.stage, *flags({**step.arguments, over: some})]
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment([device])))
    if any(process.wait() for process in running):
        raise SystemExit(f"{step.stage} failed")
    return time.monotonic() - began


def of_tasks(of: argparse.Namespace) -> None:
    write_corpus(of.folder / "corpus", of)
    model = random_models.write(random_models.SHAPES["minilm"], of.tokenizer, of.folder / "model")
    devices = range(len(of.devices))
    seconds: dict[str, list[float]] = {}
    neighbours: dict[str, str] = {}
    for name in ("one", "each"):
        request = request_of(
            str(of.folder / name), "d", "r", "--corpus", of.folder / "corpus", "--model", model, "--tokenizer",
            of.tokenizer, "--index-type", of.index_type, "--nprobe", 16, "--device", of.device,
        )  # fmt: skip
        plan_uri = ""
        for step in steps(request):
            plan_uri = step.arguments.get("plan", plan_uri)
            took = perform(step, devices) if name == "each" else whole(step)
            seconds.setdefault(step.stage, []).append(took)
            print(f"{name:6}{step.stage:24}{took:>8.1f} s", flush=True)
            if step.stage == "retrieve-neighbours":
                neighbours[name] = digests_of(plan_uri)
                if name == "each" and of.device == "cuda":
                    neighbours["grid"] = by_grid(step, plan_uri, devices, seconds)
    print(f"\n{'stage':24}{'one task':>10}{'a task a GPU':>14}")
    for stage, took in seconds.items():
        print(f"{stage:24}" + "".join(f"{one:>{10 + 4 * i}.1f}" for i, one in enumerate(took)))
    print(f"{'all':24}{sum(took[0] for took in seconds.values() if len(took) > 1):>10.1f}", end="")
    print(f"{sum(took[1] for took in seconds.values() if len(took) > 1):>14.1f}")
    assert len(set(neighbours.values())) == 1, neighbours
    print("the same neighbours")


def whole(step: Step) -> float:
    """Seconds of the stage in one process with all GPUs."""
    began = time.monotonic()
    command = [sys.executable, "-m", "retro_ops.cli", *step.command()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def by_grid(step: Step, plan_uri: str, devices: Sequence[int], seconds: dict[str, list[float]]) -> str:
    """Retrieval again, with a cell on each GPU at a time: digest of its neighbours."""
    plan = read_plan(plan_uri)
    for shard in step.arguments["shard"]:
        shutil.rmtree(Path(paths.report_uri(plan, step.stage, shard)).parent)
    shape = grid.Grid(len(devices), len(devices))
    rows = {split: sum(count_queries(plan, split).values()) for split in plan.splits()}
    cells = [cell.name for cell in grid.cells(shape, rows)]
    searched = perform(Step("search-parts", {"plan": plan_uri, "cell": cells}, len(cells)), devices, "cell")
    merged = perform(Step(step.stage, {**step.arguments, "grid": str(shape)}), devices)
    seconds[f"grid {shape}: cells"], seconds["grid: merge"] = [searched], [merged]
    print(f"grid {shape}: {searched:.1f} s for the cells, {merged:.1f} s for the merge", flush=True)
    return digests_of(plan_uri)


def digests_of(plan_uri: str) -> str:
    plan = read_plan(plan_uri)
    files = [
        output["uri"]
        for shard in plan.shards
        for output in (report.read(paths.report_uri(plan, "retrieve-neighbours", shard.name)) or {})["outputs"]
    ]
    return " ".join(digest_of(uri) for uri in sorted(files))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("embed", "train", "tasks"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", help="folder with tokenizer.json, that of the chunks")
    parser.add_argument("--chunks", type=Path, help="array of chunks of real text")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="embed: models and inputs")
    parser.add_argument("--scale", type=float, default=1, help="embed: factor of the number of chunks")
    parser.add_argument("--vectors", type=int, default=33_500_000)
    parser.add_argument("--lists", type=int, default=131_072)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--fill", type=int, default=8_000_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--documents", type=int, default=15_000, help="tasks: of each shard")
    parser.add_argument("--index-type", default="IVF16384,PQ32")
    of = parser.parse_args()
    of.device, of.devices = ("cuda", gpus()) if torch.cuda.is_available() else ("cpu", ["cpu"] * 2)
    of.folder.mkdir(parents=True, exist_ok=True)
    print(machine.describe(), flush=True)
    {"embed": of_embedding, "train": of_training, "tasks": of_tasks}[of.what](of)


if __name__ == "__main__":
    main()
