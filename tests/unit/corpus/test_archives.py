"""Archives and tables: read to their end, or refused; values of every type as text."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from retro_ops.corpus import archives, json_lines
from retro_ops.errors import BadInputError


def _lines(path: Path, members: str | None = "**", text: str = "text") -> list[bytes | None]:
    return [line for _, _, line in archives.lines(str(path), members, 10**6, text)]


def _tar(members: int = 3, name: str = "{}.jsonl", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for number in range(members):
            data = b"".join(b'{"text": "%d"}\n' % line for line in range(5)) * (1 + number)
            member = tarfile.TarInfo(name.format(number))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


WHOLE = _tar()
SECOND = 1024  # Offset of the second header.


def _byte_changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


DAMAGED = {
    "a changed header": _byte_changed(WHOLE, SECOND + 3),
    "cut at a member": WHOLE[:SECOND],
    "cut in a header": WHOLE[: SECOND + 100],
    "cut in the data": WHOLE[: SECOND + 520],
    "no end": WHOLE[: 2 * SECOND + 512],
    "two joined": WHOLE + WHOLE,
    "something behind the end": WHOLE + b"x",
    "empty": b"",
    "no archive": b"x" * 2000,
}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("kind", DAMAGED)
def test_an_archive_is_read_to_its_end_or_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(DAMAGED[kind]) if suffix == "tar.gz" else DAMAGED[kind])
    with pytest.raises(BadInputError, match=r"a\.tar"):
        _lines(path)


def test_the_checksum_behind_the_end_of_an_archive_is_compared(tmp_path: Path) -> None:
    data = gzip.compress(WHOLE)
    (tmp_path / "a.tar.gz").write_bytes(data)
    assert len(_lines(tmp_path / "a.tar.gz")) == 30
    (tmp_path / "a.tar.gz").write_bytes(_byte_changed(data, len(data) - 6))
    with pytest.raises(BadInputError, match="damaged"):
        _lines(tmp_path / "a.tar.gz")


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_of_an_archive_loses_documents(at: int, change: int) -> None:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp") / "retro-changed.tar"
    path.write_bytes(WHOLE[:at] + bytes([WHOLE[at] ^ change]) + WHOLE[at + 1 :])
    try:
        found = _lines(path)
    except BadInputError:
        return
    finally:
        path.unlink()
    # A byte of the data or of its padding: as many lines, but for a changed line end.
    assert abs(len(found) - 30) <= 1


def _header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def _with_pax(**headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.pax_headers = headers
        archive.addfile(member, io.BytesIO())
    return buffer.getvalue()


HOSTILE = {
    "a name of 1 GB": _header(tarfile.GNUTYPE_LONGNAME, 2**30),
    "pax headers of 1.5 GB": _header(tarfile.XHDTYPE, 3 * 2**29),
    "a negative size": _header(tarfile.REGTYPE, -512),
    "a sparse member": _header(tarfile.GNUTYPE_SPARSE, 512),
    "a sparse member of 1 TB": _with_pax(**{"GNU.sparse.map": "0,512", "GNU.sparse.size": str(2**40)}),
    "a sparse map of text": _with_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}),
    "a number of text": _with_pax(size="many"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_headers_of_an_archive_are_bounded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(BadInputError, match=r"a\.tar"):
        _lines(path, "none")


def test_members_below_a_dot_are_matched_without_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar(name="./d/{}.jsonl"))
    assert len(_lines(tmp_path / "a.tar", "d/*.jsonl")) == len(_lines(tmp_path / "a.tar", "./d/*.jsonl")) == 30


def _table(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


TEXT_TYPES: list[Callable[[], pa.DataType]] = [pa.string, pa.large_string, pa.binary, pa.large_binary]


@pytest.mark.parametrize("kind", TEXT_TYPES)
@pytest.mark.parametrize("encoded", [False, True])
def test_text_of_a_table_may_be_bytes(kind: Callable[[], pa.DataType], encoded: bool, tmp_path: Path) -> None:
    column: Any = pa.array(["café au lait".encode(), b'"\\\n', b""], pa.binary()).cast(kind())
    path = _table(tmp_path / "a.parquet", text=column.dictionary_encode() if encoded else column)
    found = [json_lines.parse(line, "a", 1, 100) for line in _lines(path)]
    assert [r.text for r in found if isinstance(r, json_lines.Document)] == ["café au lait", '"\\\n', ""]


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_text_that_is_no_utf8_is_a_bad_record_and_other_bytes_are_escaped(
    kind: Callable[[], pa.DataType], tmp_path: Path
) -> None:
    column = pa.array([b"caf\xe9", b"good"], pa.binary())
    text = pa.Array.from_buffers(
        kind(), 2, column.cast("large_binary" if "large" in str(kind()) else "binary").buffers()
    )
    lines = _lines(_table(tmp_path / "a.parquet", text=text, raw=column))
    bad, good = (json_lines.parse(line, "a", 1, 100) for line in lines)
    assert isinstance(bad, json_lines.BadRecord)
    assert bad.reason.startswith("invalid UTF-8")
    assert good == json_lines.Document("good", {"raw": "good"}, "a", 1, len(lines[1] or b""))


def test_every_value_of_a_table_is_strict_json(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "text": ["x"],
        "nan": [float("nan")],
        "nested": [{"inf": [float("inf")], "bytes": b"caf\xc3\xa9"}],
        "day": [date(2026, 1, 2)],
        "price": [Decimal("1.50")],
        "none": [None],
    }
    (line,) = _lines(_table(tmp_path / "a.parquet", **{name: pa.array(column) for name, column in values.items()}))
    expected = {"text": "x", "nan": None, "nested": {"inf": [None], "bytes": "café"}}
    assert json.loads(line or b"", parse_constant=pytest.fail) == {
        **expected,
        "day": "2026-01-02",
        "price": "1.50",
        "none": None,
    }


@pytest.mark.parametrize("column", [[1], [["a"]], [{"a": "b"}], [1.5], [True]])
def test_a_text_column_of_another_type_is_refused_before_the_first_row(column: list[Any], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="which is no text"):
        _lines(_table(tmp_path / "a.parquet", text=pa.array(column)))
    with pytest.raises(BadInputError, match=r"has no column 'body'.*\n.*text"):
        _lines(tmp_path / "a.parquet", text="body")
