"""A published version as the exporters see it: its shards in the order of their ids, their files and checksums."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from numpy.typing import NDArray

from retro_ops.corpus.recipes.shard_patterns import check_pattern, matching, split_patterns
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.specs import DatasetShard, IndexShard
from retro_ops.sizes import some
from retro_ops.storage import store
from retro_ops.storage.checked import checked_rows
from retro_ops.storage.npy import open_npy
from retro_ops.tokens.tokenizer import Tokenizer, planned
from retro_ops.versions import history, version_files
from retro_ops.versions.version_files import VersionFiles


@dataclass(frozen=True)
class ExportShard:
    """A shard. ``first_id``: id of its first chunk, None if it is not in the index."""

    name: str
    split: str
    first_id: int | None
    chunks: str
    seq2chunk: str
    chunk2seq: str
    neighbours: str | None
    """None if the shard is not queried."""

    @property
    def category(self) -> str:
        """``00_wikipedia_en`` and ``val_wikipedia_en`` -> ``wikipedia_en``."""
        number, _, rest = self.name.partition("_")
        return rest if rest and (number.isdecimal() or number == "val") else self.name


@dataclass(frozen=True)
class ExportVersion:
    """A version of a dataset, or some of its query shards."""

    dataset: str
    number: int
    folder: str
    files: VersionFiles
    plan_uri: str
    run_uri: str | None

    @functools.cached_property
    def sums(self) -> dict[str, dict[str, Any]]:
        """Length and checksum of every file, from the reports."""
        queries = [uri for of in self.files.splits.values() for shard in of.dataset.shards for uri in astuple(shard)]
        described = report.read(paths.report_in(self.folder, "describe"))
        found = version_files.checksums([*history.files(self.folder), *queries])
        return {**found, **{output["uri"]: output for output in (described or {"outputs": ()})["outputs"]}}

    def sum(self, uri: str) -> str:
        """SHA-256 of a file. Raises BadInputError if no report lists it."""
        if uri not in self.sums:
            raise BadInputError(
                f"no report lists {uri}, so its checksum is unknown", "run the stage that writes it again"
            )
        return str(self.sums[uri]["sha256"])

    def rows(self, uri: str, rows: int, *, overlap: int = 0) -> Iterator[NDArray[Any]]:
        """Blocks of an array, read once and compared with its checksum; see ``checked_rows``."""
        return checked_rows(uri, rows, self.sum(uri), overlap=overlap)

    def chosen(self, patterns: str | None) -> set[str]:
        """Names of the shards that ``patterns`` match; all without. Raises BadInputError if one matches none."""
        names = [shard["name"] for shard in self.files.manifest["shards"]]
        if patterns is None:
            return set(names)
        found: set[str] = set()
        for pattern in split_patterns(patterns):
            try:
                check_pattern(pattern)
            except ValueError as error:
                raise BadInputError(f"bad pattern {pattern!r} of --shards: {error}") from error
            matched = matching(pattern, names)
            if not matched:
                raise BadInputError(f"no shard matches {pattern!r}", f"the version has {some(sorted(names))}")
            found |= matched
        return found

    def shards(self) -> list[ExportShard]:
        """All shards: those of the index in the order of their ids, then those that are only queried."""
        last = self.files.splits["val" if "val" in self.files.splits else "train"]
        splits = {shard["name"]: shard["split"] for shard in self.files.manifest["shards"]}
        queried = {
            name: shard
            for split in self.files.splits.values()
            for name, shard in zip(split.queried, split.dataset.shards, strict=True)
        }
        found: list[ExportShard] = []
        total = 0
        for name, entry in zip(last.indexed, last.index, strict=True):
            found.append(_shard(name, splits[name], total, entry, queried.get(name)))
            total += len(open_npy(entry.chunks))
        others = [name for name in queried if name not in last.indexed]
        return [*found, *(_shard(name, splits[name], None, queried[name], queried[name]) for name in others)]

    def tokenizer(self) -> Tokenizer:
        return planned(self.run_uri or self.plan_uri, read_plan(self.plan_uri))

    def stored_tokenizer(self) -> str | None:
        """Location of the tokenizer as its run stored it, if the run is still there."""
        uri = paths.tokenizer_uri(self.run_uri) if self.run_uri else None
        return uri if uri and store.exists(uri) else None


def _shard(
    name: str, split: str, first_id: int | None, entry: IndexShard | DatasetShard, query: DatasetShard | None
) -> ExportShard:
    neighbours = query.neighbours if query else None
    return ExportShard(name, split, first_id, entry.chunks, entry.seq2chunk, entry.chunk2seq, neighbours)


def open_version(root: str, dataset: str, number: int | None) -> ExportVersion:
    """Version ``number``, or the current one. Raises BadInputError if it does not exist."""
    series = history.read(root, dataset)
    entry = series.entry(number)
    folder = series.folder(entry["version"])
    files = version_files.read(folder)
    return ExportVersion(
        dataset, entry["version"], folder, files, series.plan_uri(entry["version"]), series.run_uri(entry["version"])
    )


def provenance(shard: ExportShard, version: ExportVersion) -> Mapping[str, str]:
    """The files that say what the documents of a shard are, by name; only those that the version has."""
    found = {"documents.jsonl.zst": paths.documents_uri(shard.chunks)}
    found["document_ids.npy"] = paths.document_ids_uri(shard.chunks)
    return {name: uri for name, uri in found.items() if uri in version.sums}
