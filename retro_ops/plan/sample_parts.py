"""Parts of the vectors in which the samples of `tune-search` and `describe` are searched. Standard library only.

Both compare a few thousand queries with every vector. In a large corpus that is most of the reading outside of mapped
tasks, so `search-samples` does it: its tasks read each vector once, for the samples of both stages and of all splits.
"""

import re
from dataclasses import dataclass

from retro_ops.errors import BadInputError

LARGE = 20_000_000
"""Chunks from which on mapped tasks read what else a task that runs once would. Fewer are read in a minute, for which
no further tasks are started."""

PART_VECTORS = 16_000_000
"""Vectors of a part: 12 GB with 384 dimensions."""


@dataclass(frozen=True)
class SamplePart:
    """Part number ``part`` of ``parts`` of the vectors of the largest index."""

    part: int
    parts: int

    @property
    def name(self) -> str:
        return f"{self.part}-of-{self.parts}"


def is_large(chunks: int) -> bool:
    """Whether a corpus, or an index, of this number of chunks is read by mapped tasks only."""
    return chunks >= LARGE


def parts(vectors: int) -> list[SamplePart]:
    """The parts of ``vectors`` vectors, those of the largest index; none if each stage searches them itself."""
    count = -(-vectors // PART_VECTORS) if is_large(vectors) else 0
    return [SamplePart(number, count) for number in range(count)]


def parse_part(name: str) -> SamplePart:
    """The part called ``name``; see ``SamplePart.name``."""
    found = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", name)
    if not found or int(found[1]) >= int(found[2]):
        raise BadInputError(f"{name!r} is not a part", "`retro-ops search-samples --list` names the parts")
    return SamplePart(int(found[1]), int(found[2]))
