"""Which device a stage computes on."""

import subprocess
import sys

import pytest

from retro_ops.compute import device
from retro_ops.errors import ConfigurationError


def test_a_gpu_that_is_not_there_is_an_error_with_a_hint() -> None:
    if device.choose("auto", "faiss").chosen == "cuda":
        assert device.choose("cuda", "faiss").why == "asked for"
        return
    for library in ("torch", "faiss"):
        with pytest.raises(ConfigurationError, match="What to do"):
            device.choose("cuda", library)
        assert "sees no GPU" in device.choose("auto", library).why


def test_a_gpu_is_looked_for_only_where_there_is_a_driver() -> None:
    """Importing torch to ask would cost stages without a model seconds and memory."""
    code = (
        "import sys; from retro_ops.compute import device; "
        "print(device.choose('auto', 'torch').chosen, 'torch' in sys.modules)"
    )
    without = f"from retro_ops.compute import device; device.DRIVERS = ('no-such-driver.so',); {code}"
    found = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["cpu", "False"]
