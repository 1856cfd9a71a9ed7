"""JSON lines: compressed or not, whole or damaged; how corpus files are found."""

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


def test_corpus_files_are_found_by_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [Path(uri).relative_to(tmp_path).as_posix() for uri in json_lines.find(f"{tmp_path}/{pattern}")]

    everything = ["00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl"]
    assert found("00_a.jsonl") == ["00_a.jsonl"]
    assert found("") == found("**/*.jsonl*") == everything
    assert found("{00..01}_*.jsonl*") == everything[:2]
    assert found("*_a.jsonl") == ["00_a.jsonl"]
    with pytest.raises(BadInputError, match="no corpus file"):
        found("*.parquet")


def test_dates_in_folders_and_in_names(tmp_path: Path) -> None:
    for name in ("2026-01-01/a", "2026-01-02/a", "2026-01-03/a", "latest/a", "2026-01-02/sub/a"):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    pattern = f"{tmp_path}/{{date}}/*.jsonl"
    found = json_lines.find_dated(pattern, "2026-01-02")
    assert [(Path(f.uri).relative_to(tmp_path).as_posix(), f.date) for f in found] == [
        ("2026-01-01/a.jsonl", "2026-01-01"),
        ("2026-01-02/a.jsonl", "2026-01-02"),
    ]
    assert len(json_lines.find_dated(pattern, None)) == 3
    with pytest.raises(BadInputError, match="has a date up to 2025-12-31"):
        json_lines.find_dated(pattern, "2025-12-31")
    (tmp_path / "flat").mkdir()
    for name in ("news_2026-01-01_2026-01-05", "news_2026-01-02_2026-01-01"):
        (tmp_path / "flat" / f"{name}.jsonl").write_text("{}")
    (only,) = json_lines.find_dated(f"{tmp_path}/flat/news_*_{{date}}.jsonl", "2026-01-03")
    assert only.date == "2026-01-01"
