"""Lines of a corpus in batches, one for each call of a process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """Lines of one source, in order. ``numbers``: of each, from 1; there are gaps where records were left out."""

    source: str
    numbers: list[int]
    lines: list[bytes | None]


def batches(lines: Iterable[tuple[str, int, bytes | None]], most_bytes: int, most_lines: int) -> Iterator[Batch]:
    """Lines together until they have ``most_bytes``, or are ``most_lines``, or their source ends."""
    batch, size = Batch("", [], []), 0
    for source, number, line in lines:
        if batch.lines and (size >= most_bytes or len(batch.lines) >= most_lines or source != batch.source):
            yield batch
            batch, size = Batch("", [], []), 0
        if not batch.lines:
            batch = Batch(source, [], [])
        batch.numbers.append(number)
        batch.lines.append(line)
        size += len(line or b"")
    if batch.lines:
        yield batch
