"""The list of source files that ``list-sources`` writes, and the locations that follow from it.

Standard library only, because Airflow imports this module.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypedDict

from retro_ops.errors import BadInputError
from retro_ops.plan import documents, paths
from retro_ops.plan.plan import Source, check_name
from retro_ops.uris import join

FORMAT = 1


@dataclass(frozen=True)
class SourceFile:
    """One source file of a recipe."""

    name: str
    """Name of the folder of its parts."""
    uri: str
    bytes: int
    fingerprint: str
    rule: int
    """Position of its source in the recipe."""
    digest: str
    """Digest of everything that decides its parts."""


@dataclass(frozen=True)
class Sources:
    """The source files of a run with everything that later stages need to split them."""

    root: str
    dataset: str
    recipe: str
    """Location or name of the recipe."""
    text: str
    """The recipe itself, so that all stages of a run use the same one."""
    folder: str
    """Folder of the recipe's relative paths."""
    given_folder: str | None
    """The folder if the user gave it; None if it is that of the recipe."""
    files: tuple[SourceFile, ...]
    on_bad_record: str
    max_bad_share: float
    line_bytes: int
    """Longest line; a longer one is a bad record."""
    memory_budget: str
    absent: tuple[str, ...] = ()
    """Messages about optional files and categories that are missing."""
    by_name: Mapping[str, SourceFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {file.name: file for file in self.files})

    def file(self, name: str) -> SourceFile:
        """The source file called ``name``. Raises BadInputError if there is none."""
        if name not in self.by_name:
            raise BadInputError(f"the recipe has no source file {name!r}", "see the log of `list-sources`")
        return self.by_name[name]

    def parts_folder(self, file: SourceFile) -> str:
        return paths.parts_folder(self.root, self.dataset, file.name, file.digest)

    def part(self, file: SourceFile, entry: Mapping[str, Any]) -> Source:
        """The part that ``entry`` in the report of ``file`` describes."""
        uri = paths.part_uri(self.parts_folder(file), check_name("shard", entry["shard"]))
        return Source(uri, entry["bytes"], entry["fingerprint"])

    def report_uri(self, file: SourceFile) -> str:
        """The report of splitting ``file``, which exists if and only if it was split."""
        return paths.report_in(self.parts_folder(file), "split-corpus")


class _Document(TypedDict):
    format: Literal[1]
    root: str
    dataset: str
    recipe: str
    text: str
    folder: str
    given_folder: str | None
    files: list[SourceFile]
    on_bad_record: str
    max_bad_share: float
    line_bytes: int
    memory_budget: str
    absent: list[str]


def to_json(sources: Sources) -> str:
    document: dict[str, Any] = asdict(sources)
    del document["by_name"]
    return json.dumps({"format": FORMAT, **document}, indent=1) + "\n"


def from_json(text: str | bytes, uri: str) -> Sources:
    """Parse the list at ``uri``. Raises BadInputError if it is not one of this format."""
    document = documents.read(text, uri, _Document, "run `retro-ops list-sources` again")
    files = tuple(SourceFile(**file) for file in document["files"])
    others = {field.name: document[field.name] for field in fields(Sources) if field.init and field.name in document}
    sources = Sources(**others | {"absent": tuple(document["absent"]), "files": files})
    check_name("dataset", sources.dataset)
    _check_place(sources, uri)
    for file in sources.files:
        check_name("source file", file.name)
        check_name("digest", file.digest)
    return sources


def _check_place(sources: Sources, uri: str) -> None:
    """Raise BadInputError if a list in the folder of a run would have its parts written to another dataset."""
    folder, _, name = uri.rpartition("/runs/")
    if name.count("/") == 1 and _canonical(folder) != _canonical(join(sources.root, sources.dataset)):
        raise BadInputError(
            f"{uri} is of dataset {sources.dataset!r} in {sources.root}, but is stored elsewhere",
            "run `retro-ops list-sources` again",
        )


def _canonical(folder: str) -> str:
    return folder if "://" in folder else os.path.realpath(folder)
