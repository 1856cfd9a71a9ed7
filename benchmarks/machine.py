"""The machine of a benchmark: names, versions, and two measured limits of the hardware."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "faiss-gpu", "faiss-cpu", "numpy", "sentence-transformers", "boto3")


@dataclass(frozen=True)
class Limits:
    """Half-precision (CPU: float32) operations per second, and copied bytes per second (reads and writes)."""

    operations: float
    bytes: float

    def line(self, operations: float, moved: float, seconds: float) -> str:
        """The share of the closer hardware limit reached by work of ``operations`` and at least ``moved`` bytes."""
        floor = max(operations / self.operations, moved / self.bytes)
        bound = "arithmetic" if operations / self.operations > moved / self.bytes else "memory"
        return (
            f"{operations / 1e12:,.2f} TFLOP, {moved / 1e9:,.2f} GB; bound by {bound}, at least {floor:.4f} s: "
            f"{floor / seconds:.0%} of the limit"
        )


def describe() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{', '.join(gpus) or 'no GPU'}; {os.cpu_count()} cores ({cpu}); Python {platform.python_version()}, " + (
        ", ".join(versions)
    )


def measure(device: str) -> Limits:
    size, dtype = (8192, torch.float16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
    product_s = timed(lambda: a @ b, device, repeat=5)
    data = torch.ones(2**30 if device == "cuda" else 2**27, dtype=torch.uint8, device=device)
    copy_s = timed(lambda: data.clone(), device, repeat=5)
    return Limits(2 * size**3 / product_s, 2 * data.numel() / copy_s)


def timed(work: Callable[[], Any], device: str, repeat: int = 1) -> float:
    """Least seconds of ``work`` in ``repeat`` runs, after a warm-up run if it is repeated."""
    if repeat > 1:
        work()
    taken = []
    for _ in range(repeat):
        wait(device)
        start = time.monotonic()
        work()
        wait(device)
        taken.append(time.monotonic() - start)
    return min(taken)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
