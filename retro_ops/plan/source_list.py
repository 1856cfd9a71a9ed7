"""What ``list-sources`` found: the files of a recipe, and all that follows from it without reading them again.

Standard library only, because Airflow reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.plan import Source, check_name

FORMAT = 1


@dataclass(frozen=True)
class SourceFile:
    """``name``: of its folder. ``rule``: number of the recipe's source that named it. ``digest``: of its parts."""

    name: str
    uri: str
    bytes: int
    fingerprint: str
    rule: int
    digest: str


@dataclass(frozen=True)
class Sources:
    """``text``: the recipe as it was read, so that all steps of a run go by the same. ``folder``: where its relative
    paths start. ``given_folder``: the same if the run named it, else None: that of the recipe. ``on_bad_record``,
    ``max_bad_share``, ``line_bytes``: what becomes of lines that are no document."""

    root: str
    dataset: str
    recipe: str
    text: str
    folder: str
    given_folder: str | None
    files: tuple[SourceFile, ...]
    on_bad_record: str
    max_bad_share: float
    line_bytes: int
    memory_budget: str
    absent: tuple[str, ...] = ()
    by_name: Mapping[str, SourceFile] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {file.name: file for file in self.files})

    def file(self, name: str) -> SourceFile:
        if name not in self.by_name:
            raise BadInputError(f"the recipe has no source file {name!r}", "see the log of `list-sources`")
        return self.by_name[name]

    def parts_folder(self, file: SourceFile) -> str:
        return paths.parts_folder(self.root, self.dataset, file.name, file.digest)

    def part(self, file: SourceFile, entry: Mapping[str, Any]) -> Source:
        """What ``entry``, of the parts in the report of ``file``, says is there."""
        return Source(paths.part_uri(self.parts_folder(file), entry["shard"]), entry["bytes"], entry["fingerprint"])

    def report_uri(self, file: SourceFile) -> str:
        """It exists if and only if the file was split."""
        return paths.report_in(self.parts_folder(file), "split-corpus")


def to_json(sources: Sources) -> str:
    document: dict[str, Any] = asdict(sources)
    del document["by_name"]
    return json.dumps({"format": FORMAT, **document}, indent=1) + "\n"


def from_json(text: str | bytes, uri: str) -> Sources:
    try:
        document = json.loads(text)
        if document.pop("format") != FORMAT:
            raise ValueError("another format")
        files = tuple(SourceFile(**file) for file in document.pop("files"))
        found = Sources(**document | {"absent": tuple(document["absent"])}, files=files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"{uri} is no list of sources: {error}", "run `retro-ops list-sources` again") from error
    check_name("dataset", found.dataset)
    for file in found.files:
        check_name("source file", file.name)
        check_name("digest", file.digest)
    return found
