"""A corpus recipe: which documents there are, what each is, and which shards they become.

``read`` checks all that can be known without looking at a file, and names the line of whatever is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from retro_ops.corpus.routing import ByField, ByHash, ByPath, Cut, Fixed
from retro_ops.plan.plan import Split

FORMATS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.zst": "tar",
    ".parquet": "parquet",
}
"""By suffix."""

SUFFIXES = tuple(FORMATS)


@dataclass(frozen=True)
class Line:
    """A text of a recipe and the line it stands in."""

    text: str
    line: int


@dataclass(frozen=True)
class Output:
    """Shards of one split of a source. ``shard``: template of their names. ``max_documents``: of a file's category."""

    shard: str
    cut: Cut = field(default_factory=Cut)
    max_documents: int | None = None
    line: int = 0


@dataclass(frozen=True)
class Rule:
    """One of the recipe's sources: files, and what is done with the documents in them.

    ``text``: field that holds the document. ``members``: pattern of the files in an archive. ``optional``: it may be
    absent. ``outputs``: of each split that its documents may have.
    """

    line: int
    files: tuple[Line, ...]
    category: Fixed | ByField | ByPath
    split: Fixed | ByField | ByHash
    outputs: Mapping[Split, Output]
    text: str = "text"
    members: str | None = None
    optional: bool = False

    def categories(self) -> tuple[str, ...]:
        """Those that its documents may have."""
        if isinstance(self.category, Fixed):
            return (self.category.value,)
        values = self.category.values if isinstance(self.category, ByField) else self.category.patterns
        return tuple(dict.fromkeys(values.values()))

    def without_lines(self) -> "Rule":
        """What decides the content, so that a line that is added above changes no digest."""
        outputs = {split: replace(output, line=0) for split, output in self.outputs.items()}
        return replace(self, line=0, files=(), optional=False, outputs=outputs)


@dataclass(frozen=True)
class Recipe:
    """``indexed``, ``queried``: patterns of shard names; empty: all."""

    uri: str
    categories: tuple[str, ...]
    sources: tuple[Rule, ...]
    indexed: tuple[Line, ...] = ()
    queried: tuple[Line, ...] = ()


def suffix_of(name: str) -> str | None:
    """``realnews.tar.gz`` -> ``.tar.gz``; None for what no format has."""
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default=None)


def format_of(name: str) -> Literal["jsonl", "tar", "parquet"] | None:
    suffix = suffix_of(name)
    return FORMATS[suffix] if suffix else None  # type: ignore[return-value]
