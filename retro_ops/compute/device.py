"""Chooses GPU or CPU, the precision on it and the number of cores, each with the reason: the only place that does."""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retro_ops.errors import BadInputError, ConfigurationError

CHOICES = ("auto", "cpu", "cuda")
Library = Literal["torch", "faiss"]


@dataclass(frozen=True)
class Device:
    """``gpus``: number of GPUs that the library sees, 0 on the CPU."""

    chosen: str
    why: str
    gpus: int = 0


def choose(requested: str, library: Library) -> Device:
    """``cpu`` or ``cuda`` for ``library``.

    ConfigurationError if ``cuda`` is requested and ``library`` sees no GPU: a run never falls back to the CPU silently.
    """
    if requested not in CHOICES:
        raise BadInputError(f"unknown device {requested!r}", f"use one of {', '.join(CHOICES)}")
    if requested == "cpu":
        return Device("cpu", "asked for")
    count = _torch_gpus() if library == "torch" else _faiss_gpus()
    if requested == "cuda":
        if not count:
            hint = "check nvidia-smi and the driver, or use --device auto or cpu"
            if library == "faiss":
                hint = "install faiss-gpu in place of faiss-cpu and check nvidia-smi, or use --device auto or cpu"
            raise ConfigurationError(f"--device cuda was requested, but {library} sees no GPU", hint)
        return Device("cuda", "asked for", count)
    if count:
        return Device("cuda", f"auto: {library} sees {count} GPU{'s' if count > 1 else ''}", count)
    return Device("cpu", f"auto: {library} sees no GPU")


def gpus() -> list[str]:
    """Torch's names of the GPUs that this process sees."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class Precision:
    """``dtype``: name of the torch dtype that a model computes in."""

    dtype: Literal["float32", "float16", "bfloat16"]
    why: str


def precision(chosen: str) -> Precision:
    """Precision of a model on the device ``chosen``: half precision only where it is faster."""
    if chosen == "cuda":
        return Precision("float16", "GPU: tensor cores; more digits than bfloat16 at the same rate")
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    for feature in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(feature):
            return Precision("bfloat16", f"CPU: has {feature}")
    return Precision("float32", "CPU: has neither amx_bf16 nor avx512_bf16, without which bfloat16 is slower")


def cores() -> int:
    """Cores that this process may use, by its affinity and the CPU quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(allowed, round(quota))) if quota else allowed


def _cgroup_quota() -> float | None:
    """CPU quota of the container in cores, None if it has none. Control groups of version 2, then version 1."""
    folder = Path("/sys/fs/cgroup")
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu/cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return None if most.strip() in ("max", "-1") else int(most) / int(period)


DRIVERS = ("libcuda.so.1", "libamdhip64.so")


def _torch_gpus() -> int:
    # Importing torch takes seconds and hundreds of MiB, which stages without a model would spend on this check alone.
    if "torch" not in sys.modules and not any(map(_loads, DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _faiss_gpus() -> int:
    import faiss

    # Some releases of faiss-cpu lack this function.
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0
