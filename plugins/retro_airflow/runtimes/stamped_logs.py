"""Reading on in a log whose lines carry time stamps, where the server goes by whole seconds only."""

from retro_airflow.runtimes import Position


def read_on(data: bytes, position: Position, ended: bool) -> tuple[list[str], Position]:
    """Texts of the lines in ``data`` that come after ``position``, and the position after them.

    A position is the stamp of the last line read and how many lines with that stamp were read, so that none is
    lost or printed twice; ``data`` may begin before it. Stamps are of one length and so compare as text. The last
    line counts without its end only if ``ended``.
    """
    stamp, seen = position or ("", 0)
    lines = data.decode(errors="replace").split("\n")
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
