"""JSON lines: compressed or not, whole or damaged."""

import gzip
import json
import secrets
from pathlib import Path

import pytest
import zstandard

from retro_ops.corpus import json_lines
from retro_ops.errors import BadInputError


def _texts(path: Path, limit: int = 1000) -> list[str]:
    found = (json_lines.parse(line, source, n, limit) for source, n, line in json_lines.lines([str(path)], limit))
    return [record.text if isinstance(record, json_lines.Document) else record.reason for record in found]


def _flipped(data: bytes) -> bytes:
    """Damaged in the middle, so that inflating fails, not only the checksum at the end."""
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 16 + data[middle + 16 :]


def test_zstd_files_of_many_frames_are_read_and_those_cut_between_lines_too_are_refused(tmp_path: Path) -> None:
    """zstandard's own reader ends without a word where the file does: documents would be lost in silence."""
    lines = [json.dumps({"text": secrets.token_hex(200)}).encode() + b"\n" for _ in range(2000)]
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    path = tmp_path / "many.jsonl.zst"
    path.write_bytes(skippable.join(zstandard.compress(line) for line in lines) + zstandard.compress(b""))
    assert _texts(path) == [json.loads(line)["text"] for line in lines]
    whole = zstandard.compress(b"".join(lines))
    for length in (5, 9000, 8192, 16384, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError, match="ends in the middle of a zstd frame"):
            _texts(path)


def test_compressed_corpora_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(100)]
    data = "".join(lines).encode()
    frames = zstandard.compress(data[:500]) + zstandard.compress(data[500:])
    for name, content in (("a.jsonl.gz", gzip.compress(data)), ("a.jsonl.zst", frames), ("a.jsonl", data)):
        (tmp_path / name).write_bytes(content)
        assert _texts(tmp_path / name) == [f"document {i}" for i in range(100)]
    for name, content in (
        ("b.jsonl.gz", gzip.compress(data)[:-20]),
        ("c.jsonl.gz", b"not gzip"),
        ("d.jsonl.zst", b"x" * 99),
        *((f"cut{n}.jsonl.zst", frames[:-n]) for n in (1, 3, len(frames) // 2)),
        ("flipped.jsonl.gz", _flipped(gzip.compress(data, mtime=0))),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=name):
            _texts(tmp_path / name)


def test_line_ends_and_lines_beyond_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "' + b"x" * 300 + b'"}\n{"text": "b"}')
    texts = _texts(path, 100)
    assert (texts[0], texts[2]) == ("a", "b")
    assert "longer than 100 bytes" in texts[1]
