"""Finished blocks: valid ones are found again, all others are ignored."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retro_ops.errors import TransientError
from retro_ops.execution import checkpoints, report
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.storage import local, store

ROWS = 10


@pytest.fixture(autouse=True)
def _every_part_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 0)


def _values(unfinished: Checkpoints) -> list[int]:
    return [value for part in unfinished.parts() for value in part["values"].tolist()]


def _add(unfinished: Checkpoints, end: int, **state: Any) -> None:
    unfinished.add({"values": np.arange(unfinished.end, end), "lines": np.zeros(0, np.uint8)}, end)
    unfinished.commit_when_due(state)


def _fill(folder: Path, ends: list[int]) -> None:
    unfinished = Checkpoints(str(folder))
    _values(unfinished)
    for end in ends:
        _add(unfinished, end, seen=end)


def test_all_blocks_are_found_in_order_with_their_state(tmp_path: Path) -> None:
    _fill(tmp_path, [3, 4, ROWS])
    assert len(list(tmp_path.iterdir())) == 3
    again = Checkpoints(str(tmp_path))
    parts = list(again.parts())
    assert [part["values"].tolist() for part in parts] == [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]
    assert all(part["lines"].dtype == np.uint8 and not len(part["lines"]) for part in parts)
    assert (again.end, again.state, again.details()) == (ROWS, {"seen": ROWS}, {"resumed_at": ROWS})
    _add(again, ROWS + 1, seen=0)
    assert _values(Checkpoints(str(tmp_path))) == list(range(ROWS + 1))


def test_a_block_holds_the_parts_of_so_much_time_or_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 1000)
    unfinished = Checkpoints(str(tmp_path))
    for end in (1, 2, 3):
        _add(unfinished, end)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(checkpoints, "COMMIT_BYTES", 1000)
    _add(unfinished, 4)
    unfinished._wait(0)  # It is written beside the work, as it came by bytes and not by time.
    assert [path.name for path in tmp_path.iterdir()] == ["00000.npz"]
    assert _values(Checkpoints(str(tmp_path))) == [0, 1, 2, 3]
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 0)
    unfinished.commit_when_due()  # Nothing has come since.
    assert len(list(tmp_path.iterdir())) == 1


def test_a_block_with_any_byte_changed_or_missing_does_not_count(tmp_path: Path) -> None:
    _fill(tmp_path, [3, 6, ROWS])
    second = tmp_path / "00001.npz"
    whole = second.read_bytes()
    for at in range(len(whole)):
        second.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        assert _values(Checkpoints(str(tmp_path))) == [0, 1, 2], at
    for length in (0, 1, checkpoints.SEAL_BYTES, len(whole) // 2, len(whole) - 1):
        second.write_bytes(whole[:length])
        assert _values(Checkpoints(str(tmp_path))) == [0, 1, 2], length
    again = Checkpoints(str(tmp_path))
    _values(again)
    _add(again, 6)
    assert _values(Checkpoints(str(tmp_path))) == list(range(ROWS)), "overwritten, and the third follows on again"


def test_nothing_after_a_gap_counts(tmp_path: Path) -> None:
    _fill(tmp_path, [3, 6, ROWS])
    (tmp_path / "00001.npz").unlink()
    again = Checkpoints(str(tmp_path))
    assert _values(again) == [0, 1, 2]
    assert again.details() == {"resumed_at": 3}


def test_a_block_that_does_not_follow_on_is_passed_over_and_overwritten(tmp_path: Path) -> None:
    """Two runs at once: the first block is of the one, the second of the other."""
    one, other = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path))
    _add(one, 4)
    _add(other, 5)
    _add(one, 8)
    again = Checkpoints(str(tmp_path))
    assert _values(again) == [0, 1, 2, 3, 4]
    _add(again, ROWS)
    assert _values(Checkpoints(str(tmp_path))) == list(range(ROWS))


def test_a_block_that_goes_while_it_is_read_is_a_gap(tmp_path: Path) -> None:
    """The other of two runs is done, and deletes them."""
    _fill(tmp_path, [3, 6, ROWS])
    again = Checkpoints(str(tmp_path))
    parts = again.parts()
    next(parts)
    Checkpoints(str(tmp_path)).delete()
    assert not list(parts)
    assert again.end == 3


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unfinished = Checkpoints(None)
    assert not list(unfinished.parts())
    _add(unfinished, 3)
    unfinished.delete()
    assert (unfinished.end, unfinished.details()) == (3, {})
    assert not list(tmp_path.iterdir())


def test_blocks_go_after_the_report_and_at_the_latest_with_the_next_run(tmp_path: Path) -> None:
    folder, uri = tmp_path / "x.unfinished-d", str(tmp_path / "x.report.json")

    def once() -> None:
        unfinished = Checkpoints(str(folder))

        def work() -> report.Outcome:
            _add(unfinished, 3)
            assert folder.is_dir()
            assert not store.exists(uri)
            return report.Outcome({}, [])

        report.run_once("stage", uri, "d", {}, [], work, unfinished)

    once()
    assert [path.name for path in tmp_path.iterdir()] == ["x.report.json"]
    _fill(folder, [3])  # As by a kill after the report.
    once()
    assert [path.name for path in tmp_path.iterdir()] == ["x.report.json"]


def test_what_is_done_before_the_first_block_asks_the_store_for_one_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 1000)
    asked = []

    class Counting(local.LocalStore):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(store, "_LOCAL", Counting())
    unfinished = Checkpoints(str(tmp_path))
    _values(unfinished)
    _add(unfinished, 3)
    unfinished.delete()
    assert asked == ["list"]


def test_blocks_written_beside_the_work_count_up_to_the_first_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write takes long, and is all that a kill leaves undone."""
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 1000)
    monkeypatch.setattr(checkpoints, "COMMIT_BYTES", 1)
    write, held = checkpoints._write_block, threading.Event()

    def slowly(uri: str, buffer: io.BytesIO) -> None:
        if uri.endswith("00000.npz"):
            held.wait()
        write(uri, buffer)

    monkeypatch.setattr(checkpoints, "_write_block", slowly)
    unfinished = Checkpoints(str(tmp_path))
    for end in (1, 2, 3):
        _add(unfinished, end)
    while len(list(tmp_path.glob("*.npz"))) < 2:
        time.sleep(0.01)
    assert _values(Checkpoints(str(tmp_path))) == []
    held.set()
    unfinished._wait(0)
    assert _values(Checkpoints(str(tmp_path))) == [0, 1, 2]


def test_a_block_that_could_not_be_written_does_not_fail_what_counts_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 1000)
    monkeypatch.setattr(checkpoints, "COMMIT_BYTES", 1)

    def fail(uri: str, buffer: io.BytesIO) -> None:
        raise TransientError("the store is away")

    unfinished = Checkpoints(str(tmp_path))
    _add(unfinished, 1)
    monkeypatch.setattr(checkpoints, "_write_block", fail)
    _add(unfinished, 2)
    unfinished.delete()
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    unfinished = Checkpoints(str(tmp_path))
    _add(unfinished, 1)
    with pytest.raises(TransientError, match="the store is away"):
        unfinished._wait(0)
