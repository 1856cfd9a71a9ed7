"""Groups corpus lines into batches, one for each call of a worker process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """Lines of one source, in order."""

    source: str
    numbers: list[int]
    """Line numbers from 1, with gaps where records were left out."""
    lines: list[bytes | None]
    """None for a line that is too long."""


def batches(lines: Iterable[tuple[str, int, bytes | None]], most_bytes: int, most_lines: int) -> Iterator[Batch]:
    """Batches that end at ``most_bytes``, at ``most_lines`` or with their source."""
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
