"""Records of JSON lines: parses documents, names bad ones, and writes lines."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zstandard

from retro_ops.corpus import line_streams
from retro_ops.errors import BadInputError
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.plan.plan import Source
from retro_ops.progress import say
from retro_ops.storage import store
from retro_ops.storage.base import Writer, Written
from retro_ops.storage.range_file import EnoughError, RangeFile
from retro_ops.uris import file_name

MOST_LEVELS = 500
"""Levels of lists and mappings in a record. Python's parser has a limit that depends on its caller."""

TOO_DEEP = f"nested deeper than {MOST_LEVELS} levels"

MOST_BAD_AT_FIRST = 100_000
"""Reading a file stops after this many bad records without a document, if the bad-record limit does not allow them."""

NO_KEY, NO_STRING, TOO_LONG = "no key ", " is not a string but ", "line longer than "
"""Parts of reasons."""

SAMPLE_REQUEST_BYTES = 2**18
"""Bytes of one request for a sample."""

QUARANTINED_CHARACTERS = 200
"""Characters of a bad record that are kept, so that it can be recognised."""


@dataclass(frozen=True)
class Document:
    """One valid record."""

    text: str
    extra: dict[str, Any]
    """The other keys of the record (``id``, ``url``, ``meta``, …)."""
    source: str
    line: int
    """Line number from 1."""
    bytes: int
    """Length of the line."""


@dataclass(frozen=True)
class BadRecord:
    """A line that is not a document, with the reason."""

    source: str
    line: int
    reason: str
    content: str

    def __str__(self) -> str:
        """File, line and reason; of a record without text also its keys, among which the user finds the right one."""
        keys = ", ".join(map(repr, _first_keys(self.content))) if self.reason.startswith(NO_KEY) else ""
        return f"{self.source}, line {self.line}: {self.reason}" + (f"; its keys are {keys}" if keys else "")

    @property
    def remedy(self) -> str:
        if self.reason.startswith(NO_KEY) or NO_STRING in self.reason:
            return (
                f"name the key of the text with {PARAMETERS['text_field'].where}, or, if files have different keys, "
                "use a recipe and name it with `text` of each source"
            )
        if self.reason.startswith(TOO_LONG):
            return f"raise {PARAMETERS['longest_line'].where} and {PARAMETERS['memory_budget'].where}"
        return "fix the file"


def changed_source(sources: Iterable[Source]) -> str | None:
    """A message about the first file that is missing or changed since the plan was made; None if all are unchanged."""
    for source in sources:
        if not store.exists(source.uri):
            return f"{source.uri} was removed"
        if store.at(source.uri).fingerprint(source.uri) != source.fingerprint:
            return f"{source.uri} has changed"
    return None


def check_unchanged(sources: Iterable[Source], by: Literal["plan", "list_sources"] = "plan") -> None:
    """Raise BadInputError unless each of ``sources`` is as the task ``by`` found it.

    Call it before and after a file is read: the folder of an output is named after the content it was made from.
    """
    if changed := changed_source(sources):
        event = {"plan": "the run was planned", "list_sources": "the sources were listed"}[by]
        raise BadInputError(
            f"{changed} since {event}",
            f"start a new run, or clear the task `{by}` and all tasks after it to use the files as they are now",
        )


def exceeds(sources: Sequence[str], limit: int) -> bool:
    """Whether the stored files have ``limit`` bytes or more. True for standard input, whose size is unknown."""
    return line_streams.STDIN in sources or sum(store.at(uri).size(uri) for uri in sources) >= limit


def sample(
    source: str, max_line_bytes: int, text_key: str, wanted_bytes: int, most_bytes: int
) -> tuple[list[Document], float]:
    """Documents from the start of a file, up to ``wanted_bytes`` of lines, and the share of the file that was read.

    The share counts stored bytes, so it also holds for compressed files, up to the decompressor's read-ahead. Stops
    before more than ``most_bytes`` of the file would be read.
    """
    documents: list[Document] = []
    file = RangeFile(source, most_bytes)
    with io.BufferedReader(file, SAMPLE_REQUEST_BYTES) as raw:
        counted = line_streams.Counted(raw)
        with contextlib.suppress(EnoughError), line_streams.decompressed(counted, source) as stream:
            taken = 0
            for number, line in enumerate(line_streams.lines_of(stream, source, max_line_bytes), 1):
                record = parse(line, source, number, max_line_bytes, text_key)
                taken += len(line or b"")
                if isinstance(record, Document):
                    documents.append(record)
                if taken >= wanted_bytes:
                    plain = file_name(source).endswith(line_streams.SUFFIXES[0])
                    return documents, min(1.0, (stream.tell() if plain else counted.bytes) / max(file.size, 1))
            return documents, 1.0
    return documents, counted.bytes / file.size


def parse(
    line: bytes | None, source: str, number: int, max_line_bytes: int, text_key: str = "text"
) -> Document | BadRecord | None:
    """Parse one line; None for a blank one. ``text_key``: the key of the document text, which is not part of
    ``extra``."""

    def bad(reason: str) -> BadRecord:
        return BadRecord(source, number, reason, (line or b"").decode("utf-8", "backslashreplace"))

    if line is None:
        return bad(f"{TOO_LONG}{max_line_bytes:,} bytes: see longest_line and memory_budget")
    if not line or line.isspace():
        return None
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return bad(f"invalid UTF-8 at byte {error.start}")
    except ValueError as error:
        return bad(f"bad JSON: {error}")
    except RecursionError:
        return bad(TOO_DEEP)
    if not isinstance(record, dict):
        return bad(f"not a JSON object but {type(record).__name__}")
    if text_key not in record:
        return bad(f"{NO_KEY}{text_key!r}")
    if line.count(b"[") + line.count(b"{") > MOST_LEVELS and depth(record, MOST_LEVELS) > MOST_LEVELS:
        return bad(TOO_DEEP)
    text = record.pop(text_key)
    if not isinstance(text, str):
        return bad(f"{text_key!r}{NO_STRING}{type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return bad(f"{text_key!r} holds a lone surrogate at character {error.start}")
    return Document(text, record, source, number, len(line))


def depth(value: Any, most: int) -> int:
    """Levels of lists and mappings in ``value``; stops after ``most``."""
    level, at = 0, [value]
    while (inside := [entry for entry in at if isinstance(entry, list | dict)]) and level <= most:
        level += 1
        at = [entry for of in inside for entry in (of.values() if isinstance(of, dict) else of)]
    return level


def refusal(record: BadRecord) -> BadInputError:
    """The error for a bad record when bad records are not quarantined."""
    return BadInputError(
        str(record), f"{record.remedy}, or set bad records aside with {PARAMETERS['on_bad_record'].flag} quarantine"
    )


def first_of(quarantine: bytes) -> BadRecord:
    """The first of some lines of a quarantine file."""
    return BadRecord(**json.loads(quarantine[: quarantine.index(b"\n")]))


_KEY = re.compile(r'\s*[{,]\s*("(?:[^"\\]|\\.)*")\s*:\s*')


def _first_keys(content: str) -> list[str]:
    """The keys of a JSON object of which ``content`` is the beginning."""
    content, at, keys = content[:QUARANTINED_CHARACTERS], 0, []
    while found := _KEY.match(content, at):
        keys.append(json.loads(found[1]))
        try:
            at = json.JSONDecoder().raw_decode(content, found.end())[1]
        except ValueError:  # The content ends within the value.
            break
    return keys


def say_bad(stage: str, bad: int, good: int, first: BadRecord | None, quarantine: str) -> None:
    """Log a warning that ``bad`` records were set aside, with the ``first`` of them."""
    if bad:
        are = "is bad and was set" if bad == 1 else "are bad and were set"
        message = f"{stage}: {bad:,} of {bad + good:,} records {are} aside in {quarantine}; first: {first}"
        say(message, logging.WARNING, event="bad_records", bad_records=bad)


def too_many_bad(bad: int, good: int, limit: float, quarantine: str, first: BadRecord | None) -> BadInputError | None:
    """The error when the share of bad records is above ``limit``, else None. ``quarantine``: file that lists them."""
    remedy = first.remedy if first else "fix the file"
    share, are = bad / max(1, bad + good), "is" if bad == 1 else "are"
    if share <= limit:
        return None
    return BadInputError(
        f"{bad:,} of {bad + good:,} records ({share:.1%}) {are} bad, more than the limit of "
        f"{limit:.1%}; first: {first}; {quarantine} lists all",
        f"{remedy}, or raise {PARAMETERS['max_bad_share'].where}",
    )


def json_line(entry: dict[str, Any]) -> bytes:
    """``entry`` as one line of compact JSON in UTF-8."""
    return (strict_json(entry, separators=(",", ":")) + "\n").encode("utf-8", "backslashreplace")


def strict_json(value: Any, **options: Any) -> str:
    """``value`` as JSON. NaN and the infinities, which JSON has no words for, become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        finite = json.loads(json.dumps(value, **options), parse_constant=lambda _: None)
        return json.dumps(finite, ensure_ascii=False, allow_nan=False, **options)


class JsonLinesWriter:
    """Appends JSON lines to a file, zstd-compressed if its name ends in .zst."""

    def __init__(self, writer: Writer, uri: str) -> None:
        self._writer = writer
        self._compressor = zstandard.ZstdCompressor().compressobj() if uri.endswith(".zst") else None

    def append(self, lines: bytes) -> None:
        # Always line by line: how the input is cut may change the compressed bytes, which must be reproducible.
        for line in lines.splitlines(keepends=True):
            self._writer.write(self._compressor.compress(line) if self._compressor else line)

    def close(self) -> Written:
        if self._compressor:
            self._writer.write(self._compressor.flush())
        return self._writer.close()
