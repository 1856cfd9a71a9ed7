"""Tokenising as a process that is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from samples import tokenize_flags, write_corpus

from retro_ops.execution import report
from retro_ops.storage import store


def _stage(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *map(str, arguments)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )


def _kill_at(moments: Sequence[float], seconds: float, arguments: Sequence[object], marker: Path) -> int:
    """Starts the stage once for each moment and kills it then; counts those that died before the report."""
    died = 0
    for moment in moments:
        process = _stage(*arguments)
        time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            died += not marker.exists()
        if marker.exists():  # It had finished: its output must be complete, and the next kill starts from scratch.
            found = report.read(str(marker))
            assert found is not None
            assert all(store.sha256(o["uri"]) == o["sha256"] for o in found["outputs"])
            marker.unlink()
    return died


def test_a_stage_killed_at_any_moment_ends_byte_equal(tmp_path: Path, texts: list[str], t5_dir: str) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", texts * 40)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    start = time.monotonic()
    assert _stage("tokenize-and-chunk", corpus, *tokenize_flags(calm, t5_dir)).wait() == 0
    seconds = time.monotonic() - start
    arguments = ["tokenize-and-chunk", corpus, *tokenize_flags(stormy, t5_dir)]
    moments = [random.Random(7).uniform(0.2, 1.0) for _ in range(10)]
    assert _kill_at(moments, seconds, arguments, stormy / "chunks.report.json") >= 3
    assert _stage(*arguments).wait() == 0
    names = {path.name for path in calm.iterdir()}
    assert {path.name for path in stormy.iterdir()} == names, "leftovers of killed writers are gone"
    for name in names - {"chunks.report.json"}:
        assert (calm / name).read_bytes() == (stormy / name).read_bytes(), name
