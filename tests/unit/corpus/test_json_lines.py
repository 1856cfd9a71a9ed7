"""JSON lines: compressed or not, whole or damaged."""

import gzip
import io
import json
import secrets
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.corpus import json_lines, line_streams
from retro_ops.errors import BadInputError


def _texts(path: Path, limit: int = 1000) -> list[str]:
    found = (json_lines.parse(line, source, n, limit) for source, n, line in line_streams.lines([str(path)], limit))
    return [record.text if isinstance(record, json_lines.Document) else record.reason for record in found if record]


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


BLANK = st.sampled_from([b"", b" ", b"\t ", b"\r"])
ENDS = st.sampled_from([b"\n", b"\r\n"])


@given(st.lists(st.one_of(BLANK, st.just(b'{"text": "good"}')), max_size=20), ENDS, st.booleans(), st.booleans())
def test_blank_lines_and_byte_order_marks_are_no_records(
    lines: list[bytes], end: bytes, marked: bool, twice: bool
) -> None:
    part = (line_streams.BOM if marked else b"") + end.join(lines) + end
    stream = io.BytesIO(part * (1 + twice))
    found = [json_lines.parse(line, "a", n, 100) for n, line in enumerate(line_streams.lines_of(stream, "a", 100), 1)]
    assert [n for n, record in enumerate(found, 1) if record] == [
        n for n, line in enumerate(lines * (1 + twice), 1) if line.strip()
    ]
    assert all(record is None or isinstance(record, json_lines.Document) for record in found)


@given(st.integers(450, 550), st.sampled_from(["[|]", '{"a":|}', '[{"a":|}]']), st.integers(0, 300))
def test_depth_is_limited_by_us_and_not_by_the_parser(levels: int, kind: str, below: int) -> None:
    """The parser's own limit moves with the depth of the call stack, and is not that of the writer."""
    opening, closing = kind.split("|")
    count = levels // len(closing)
    line = b'{"text": "x", "deep": ' + (opening * count + "1" + closing * count).encode() + b"}"

    def at(frames: int) -> json_lines.Document | json_lines.BadRecord | None:
        return at(frames - 1) if frames else json_lines.parse(line, "a", 1, 10**6)

    record = at(below)
    if count * len(closing) + 1 <= json_lines.MOST_LEVELS:
        assert isinstance(record, json_lines.Document)
        assert json.loads(json_lines.json_line({"record": record.extra}))["record"] == record.extra
    else:
        assert isinstance(record, json_lines.BadRecord)
        assert record.reason == json_lines.TOO_DEEP


def test_brackets_in_a_text_are_no_levels() -> None:
    record = json_lines.parse(json.dumps({"text": "[" * 10_000 + "{" * 10_000}).encode(), "a", 1, 10**6)
    assert isinstance(record, json_lines.Document)
    record = json_lines.parse(b'{"text": "x", "deep": ' + b"[" * 10**6 + b"}", "a", 1, 10**7)
    assert isinstance(record, json_lines.BadRecord)


NUMBERS = st.floats() | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@given(st.recursive(NUMBERS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
def test_what_is_written_is_strict_json(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json_lines.json_line({"record": value})
    written = json.loads(line, parse_constant=refuse)["record"]
    assert json.dumps(written) == json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def test_nan_of_a_record_becomes_null() -> None:
    record = json_lines.parse(b'{"text": "x", "a": NaN, "b": [-Infinity, 1e999, 1.5]}', "a", 1, 100)
    assert isinstance(record, json_lines.Document)
    assert json_lines.json_line(record.extra) == b'{"a":null,"b":[null,null,1.5]}\n'


def test_a_line_that_is_too_long_names_what_decides_the_limit() -> None:
    record = json_lines.parse(None, "a", 1, 1000)
    assert isinstance(record, json_lines.BadRecord)
    assert record.reason == "line longer than 1,000 bytes: see longest_line and memory_budget"


@pytest.mark.parametrize("unit", [b"\n", b" \n", b"x"])
def test_a_file_that_expands_without_end_is_refused(
    unit: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_streams, "MOST_BLANK_LINES", 1000)
    monkeypatch.setattr(line_streams, "LONGEST_SKIPPED_LINE", 4 * 2**20)
    path = tmp_path / "bomb.jsonl.zst"
    path.write_bytes(zstandard.compress(unit * (8 * 2**20)))
    with pytest.raises(BadInputError, match=r"bomb\.jsonl\.zst has"):
        _texts(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"body": "b", "id": [1, {"text": 2}]}', "; its keys are 'body', 'id'"),
        ('{"id": 1, "body": "' + "b" * 500 + '"}', "; its keys are 'id', 'body'"),
        ('{"a\\"b": 1}', "; its keys are 'a\"b'"),
        ("{}", ""),
    ],
)
def test_a_record_without_text_is_named_with_its_keys(line: str, expected: str) -> None:
    record = json_lines.parse(line.encode(), "a.jsonl", 3, 1000)
    assert isinstance(record, json_lines.BadRecord)
    assert str(record) == f"a.jsonl, line 3: no key 'text'{expected}"


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        (b'{"body": "b"}', "--text-field (Text field on the form), or, if files have different keys, use a recipe"),
        (b'{"text": ["b"]}', "--text-field (Text field on the form)"),
        (None, "--longest-line (Longest line on the form) and --memory-budget"),
        (b"no JSON", "fix the file"),
    ],
)
def test_the_remedy_names_the_flag_and_the_field_that_solve_it(line: bytes | None, remedy: str) -> None:
    record = json_lines.parse(line, "a.jsonl", 3, 1000)
    assert isinstance(record, json_lines.BadRecord)
    assert remedy in str(json_lines.refusal(record))
    assert remedy in str(json_lines.too_many_bad(2, 1, 0.5, "quarantine.jsonl", record))
