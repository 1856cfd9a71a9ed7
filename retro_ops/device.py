"""The one place where GPU or CPU is chosen, with the reason."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Literal

from retro_ops.errors import BadInputError, ConfigurationError

CHOICES = ("auto", "cpu", "cuda")
Library = Literal["torch", "faiss"]


@dataclass(frozen=True)
class Device:
    chosen: str
    why: str


def choose(requested: str, library: Library) -> Device:
    """``cpu`` or ``cuda`` for ``library``.

    Raises ConfigurationError when ``cuda`` is asked for and ``library`` sees no GPU: never a silent
    run on the CPU.
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
            raise ConfigurationError(f"--device cuda was asked for, but {library} sees no GPU", hint)
        return Device("cuda", "asked for")
    if count:
        return Device("cuda", f"auto: {library} sees {count} GPU{'s' if count > 1 else ''}")
    return Device("cpu", f"auto: {library} sees no GPU")


DRIVERS = ("libcuda.so.1", "libamdhip64.so")


def _torch_gpus() -> int:
    # Importing torch takes seconds and hundreds of MiB, and stages without a model do it for this question alone.
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

    # faiss-cpu has no such function in some releases.
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0
