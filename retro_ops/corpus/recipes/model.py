"""The data model of a corpus recipe: its source files, how documents get category and split, and the shards they form.

``recipes.parser`` reads a recipe and checks everything that can be checked without opening a corpus file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from retro_ops.corpus.routing import ByField, ByHash, ByPath, Cut, Fixed
from retro_ops.plan.plan import Split
from retro_ops.uris import file_name

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
"""File suffix -> format."""

SUFFIXES = tuple(FORMATS)


@dataclass(frozen=True)
class RecipeLine:
    """A value of a recipe and the line that holds it."""

    text: str
    line: int


@dataclass(frozen=True)
class Output:
    """How the documents of one split of a source become shards."""

    shard: str
    """Template of the shard names."""
    cut: Cut = field(default_factory=Cut)
    max_documents: int | None = None
    """Limit for each category of each file; None for no limit."""
    line: int = 0


@dataclass(frozen=True)
class Rule:
    """One source of the recipe: its files, and what is done with the documents in them."""

    line: int
    files: tuple[RecipeLine, ...]
    category: Fixed | ByField | ByPath
    split: Fixed | ByField | ByHash
    outputs: Mapping[Split, Output]
    """One entry for each split that the documents may get."""
    text: str = "text"
    """Field that holds the text of a document."""
    members: str | None = None
    """Pattern of the files to read in an archive."""
    optional: bool = False
    """Whether the files may be missing."""

    def categories(self) -> tuple[str, ...]:
        """All categories that the documents may get."""
        if isinstance(self.category, Fixed):
            return (self.category.value,)
        values = self.category.values if isinstance(self.category, ByField) else self.category.patterns
        return tuple(dict.fromkeys(values.values()))

    def without_lines(self) -> "Rule":
        """The rule without line numbers and file names, so that its digest depends only on what decides the content."""
        outputs = {split: replace(output, line=0) for split, output in self.outputs.items()}
        return replace(self, line=0, files=(), optional=False, outputs=outputs)


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe."""

    uri: str
    categories: tuple[str, ...]
    sources: tuple[Rule, ...]
    indexed: tuple[RecipeLine, ...] = ()
    """Patterns of the shards to index; empty for all."""
    queried: tuple[RecipeLine, ...] = ()
    """Patterns of the shards that get neighbours; empty for all."""


def suffix_of(name: str) -> str | None:
    """The known suffix of a file: ``realnews.tar.gz`` -> ``.tar.gz``; None if the format is unknown."""
    name = file_name(name)
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default=None)


def format_of(name: str) -> Literal["jsonl", "tar", "parquet"] | None:
    """The format of a file by its suffix; None if it is unknown."""
    suffix = suffix_of(name)
    return FORMATS[suffix] if suffix else None  # type: ignore[return-value]
