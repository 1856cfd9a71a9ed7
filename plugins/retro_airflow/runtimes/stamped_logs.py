"""Continues reading a log by the time stamps of its lines, since the server filters by whole seconds only."""

import re
from datetime import UTC, datetime

from retro_airflow.runtimes import Position

_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_NO_STAMP = b"1970-01-01T00:00:00.000000000Z"


def read_on(data: bytes, position: Position, ended: bool) -> tuple[list[str], Position]:
    """Texts of the lines in ``data`` after ``position``, and the position after them.

    A position is the stamp of the last line read and the number of lines read with that stamp, so that no line is
    lost or printed twice; ``data`` may begin before it. Stamps have the same length, so they compare as text. A last
    line without a line end counts only if ``ended``.
    """
    stamp, seen = position or ("", 0)
    lines = _in_order(data).decode(errors="replace").split("\n")
    rest = lines.pop()
    if rest and ended:
        lines.append(rest)
    new: list[str] = []
    skip = seen
    for line in lines:
        at, _, text = line.partition(" ")
        if at < stamp:
            continue
        if at == stamp and skip:
            skip -= 1
            continue
        seen = seen + 1 if at == stamp else 1
        stamp = at
        new.append(text)
    return new, [stamp, seen] if new else position


def _in_order(data: bytes) -> bytes:
    """``data`` with stamps as ``read_on`` needs them: in UTC, of the same length, and never decreasing.

    A node uses its own time zone, summer time included, and may write lines of stdout and stderr in another order than
    that of their stamps. Messages of the kubelet itself have no stamp and get that of the previous line.
    """
    latest, lines = _NO_STAMP, []
    for line in data.split(b"\n"):
        stamp, _, text = line.partition(b" ")
        if match := _STAMP.fullmatch(stamp):
            latest = max(latest, _in_utc(*match.groups()))
            line = latest + b" " + text
        elif line:
            line = latest + b" " + line
        lines.append(line)
    return b"\n".join(lines)


def _in_utc(seconds: bytes, fraction: bytes | None, zone: bytes) -> bytes:
    if zone != b"Z":
        there = datetime.fromisoformat((seconds + zone).decode())
        seconds = there.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    return seconds + b"." + (fraction or b"").ljust(9, b"0") + b"Z"
