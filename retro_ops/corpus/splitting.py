"""Distributes the documents of a source file to parts of shards."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from retro_ops.compute.workers import ahead
from retro_ops.corpus import json_lines, routing
from retro_ops.corpus.archives import lines
from retro_ops.corpus.line_streams import SourceLine
from retro_ops.corpus.recipes import file_list
from retro_ops.corpus.recipes.model import Rule
from retro_ops.corpus.routing import LeftOut, Place
from retro_ops.plan import paths
from retro_ops.plan.plan import check_name
from retro_ops.plan.source_list import SourceFile, Sources
from retro_ops.progress import Progress
from retro_ops.storage import s3_uploads, store
from retro_ops.storage.base import Written

WRITER_BYTES = 6 * s3_uploads.PART_BYTES
"""Most memory of an open part: the first part of its upload, the one being filled and those being uploaded (together at
most five times PART_BYTES), and its compressor. True up to 42 GiB: later parts are larger."""

BATCH_LINES = 1024

BATCH_BYTES = 4 * 2**20
"""Size of a batch of lines, which is read while the previous one is distributed."""

REASONS = 200
"""Number of distinct reasons for leaving out documents that are counted separately; later ones are counted together."""

OTHERS = "other reasons"


def route(file: SourceFile, rule: Rule, listed: Sources, fan: "Fan", bad: "BadLines | None") -> Iterator[str]:
    """Write every document to its part, and yield the reason for each document that is left out.

    ``bad``: None in later passes over the file, because the first one has counted bad lines and unrouted documents.
    """
    progress = Progress("split-corpus", None, "lines")
    with ahead(_batches(lines(file.uri, rule.members, listed.line_bytes, rule.text))) as batches:
        for batch in batches:
            for where, number, line in batch:
                record = json_lines.parse(line, where, number, listed.line_bytes, rule.text)
                if record is None:
                    continue
                if isinstance(record, json_lines.BadRecord):
                    if bad:
                        bad.add(record)
                    continue
                if bad:
                    bad.good += 1
                place = routing.place(rule.category, rule.split, _whole(record, rule.text), record.text, where)
                if isinstance(place, LeftOut):
                    if bad:
                        yield place.reason
                elif over := fan.add(place, _part_line(record, line, rule.text)):
                    yield over.reason
            progress.advance(len(batch))
    progress.close()


def _batches(of: Iterator[SourceLine]) -> Iterator[list[SourceLine]]:
    batch: list[SourceLine] = []
    size = 0
    for line in of:
        batch.append(line)
        size += len(line[2] or b"")
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _whole(document: json_lines.Document, text_key: str) -> dict[str, Any]:
    """The whole record, on which the rules of a recipe decide."""
    return {**document.extra, text_key: document.text}


def _part_line(document: json_lines.Document, line: bytes | None, text_key: str) -> bytes:
    """The line of a document in a part: unchanged if the text is under ``text``, as later stages expect."""
    if text_key == "text" and line is not None:
        return line + b"\n"
    return json_lines.json_line({**document.extra, "text": document.text})


@dataclass(frozen=True)
class ShardPart:
    """The documents that a source file contributes to a shard. ``fingerprint`` identifies the content in a plan."""

    shard: str
    split: str
    category: str
    documents: int
    written: Written
    fingerprint: str

    def about(self) -> dict[str, Any]:
        named = {key: value for key, value in asdict(self).items() if key != "written"}
        return {**named, "bytes": self.written.bytes}


class Fan:
    """The open parts: one for each split and category, since their shards are filled one after the other."""

    def __init__(self, file: SourceFile, rule: Rule, folder: str, places: Sequence[Place]) -> None:
        self._file, self._rule, self._folder = file, rule, folder
        outputs = {place: rule.outputs[place[0]] for place in places}
        self._counters = {place: routing.ShardCounter(out.cut, out.max_documents) for place, out in outputs.items()}
        self._open: dict[Place, _OpenPart] = {}
        self._done: list[ShardPart] = []

    def add(self, place: Place, line: bytes) -> LeftOut | None:
        """Write a line, or return the reason for leaving it out. Splits and categories of another pass are ignored."""
        counter = self._counters.get(place)
        if counter is None:
            return None
        number = counter.next(len(line))
        if number is None:
            return LeftOut(f"over max_documents of {place[0]} {place[1]}")
        part = self._open.get(place)
        if part is None or part.number != number:
            if part:
                self._done.append(part.close())
            name = file_list.shard_name(self._rule.outputs[place[0]], self._file.uri, place[1], number)
            check_name("shard", name)
            part = self._open[place] = _OpenPart(place, number, name, paths.part_uri(self._folder, name))
        part.append(line)
        return None

    def close(self) -> list[ShardPart]:
        while self._open:
            self._done.append(self._open.pop(next(iter(self._open))).close())
        return self._done

    def abort(self) -> None:
        for part in self._open.values():
            part.abort()


class _OpenPart:
    def __init__(self, place: Place, number: int, shard: str, uri: str) -> None:
        self.number = number
        self._place, self._shard, self._documents = place, shard, 0
        self._writer = store.at(uri).create(uri)
        self._lines = json_lines.JsonLinesWriter(self._writer, uri)

    def append(self, line: bytes) -> None:
        self._lines.append(line)
        self._documents += 1

    def close(self) -> ShardPart:
        written = self._lines.close()
        fingerprint = store.at(written.uri).fingerprint_of(written)
        return ShardPart(self._shard, *self._place, self._documents, written, fingerprint)

    def abort(self) -> None:
        self._writer.abort()


class BadLines:
    """Writes bad lines with file, line and reason to the quarantine, which is created for the first of them."""

    def __init__(self, stack: contextlib.ExitStack, folder: str, listed: Sources) -> None:
        self.good = self.count = 0
        self._stack, self._uri, self._listed = stack, paths.bad_lines_uri(folder), listed
        self._lines: json_lines.JsonLinesWriter | None = None
        self.first: json_lines.BadRecord | None = None

    def add(self, record: json_lines.BadRecord) -> None:
        if self._listed.on_bad_record == "fail":
            raise json_lines.refusal(record)
        self._lines = self._lines or json_lines.JsonLinesWriter(
            self._stack.enter_context(store.create(self._uri)), self._uri
        )
        if self.count >= json_lines.MOST_BAD_AT_FIRST and not self.good:
            self.check_share()
        kept = replace(record, content=record.content[: json_lines.QUARANTINED_CHARACTERS])
        line = json_lines.json_line(asdict(kept))
        self._lines.append(line)
        self.first = self.first or json_lines.first_of(line)
        self.count += 1

    def check_share(self) -> None:
        share = self._listed.max_bad_share
        if refused := json_lines.too_many_bad(self.count, self.good, share, self._uri, self.first):
            self.close()
            raise refused

    def close(self) -> list[Written]:
        return [self._lines.close()] if self._lines else []

    def say(self, stage: str) -> None:
        json_lines.say_bad(stage, self.count, self.good, self.first, self._uri)
