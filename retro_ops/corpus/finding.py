"""Finds the files of a corpus at a path, in a folder or by a pattern, and logs what it passes over."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retro_ops.corpus.path_patterns import matcher
from retro_ops.corpus.source_lines import SUFFIXES
from retro_ops.errors import BadInputError
from retro_ops.progress import say
from retro_ops.sizes import counted, some
from retro_ops.storage import store
from retro_ops.uris import file_name, join, parent

MAGIC_CHARACTERS = "*?[{"

DATE = "{date}"
A_DATE = r"(?=(\d{4}-\d{2}-\d{2}))"
"""A lookahead, so that overlapping dates are all found."""

SHOWN = 5
"""Names in a log message about files that are passed over."""


@dataclass(frozen=True)
class CorpusFile:
    """A corpus file."""

    uri: str
    date: str | None = None
    """The date (``YYYY-MM-DD``) in its name; None when the pattern has no ``{date}``."""


def find_dated(pattern: str, as_of: str | None) -> list[CorpusFile]:
    """Corpus files like ``find``; with ``{date}`` in the pattern, only those dated (``YYYY-MM-DD``) up to ``as_of``."""
    if DATE not in pattern:
        return [CorpusFile(uri) for uri in find(pattern)]
    dated = [
        CorpusFile(uri, date)
        for uri in find(pattern.replace(DATE, "????-??-??"))
        if (date := next((d for d in re.findall(A_DATE, uri) if _matching([uri], pattern.replace(DATE, d))), None))
    ]
    kept = [file for file in dated if as_of is None or str(file.date) <= as_of]
    if not kept:
        raise BadInputError(
            f"no corpus file at {pattern!r} has a date up to {as_of}",
            f"check the day: the pattern finds {counted(len(dated), 'file')} with later dates, written YYYY-MM-DD",
        )
    return kept


def find(pattern: str, suffixes: tuple[str, ...] = SUFFIXES, noun: str = "corpus", strict: bool = False) -> list[str]:
    """Corpus files at a path, in a folder or prefix, or matching a pattern (``*``, ``**``, ``{00..29}``), sorted.

    A file or folder of that very name comes before a pattern. ``suffixes``: names that count as corpus files in a
    folder, and for a pattern that ends in ``*``. Hidden files count only if the pattern names them; files that are
    passed over are logged. Raises BadInputError when there is none, and with ``strict`` for files that are hidden or of
    another format; ``noun``: what its message calls the files.
    """
    if file_name(pattern).endswith(suffixes) and store.exists(pattern):
        return [pattern]
    is_pattern = any(character in pattern for character in MAGIC_CHARACTERS)
    inside = _files_of(_listed(pattern))
    if inside or not is_pattern:
        candidates, hidden = _visible(inside, pattern)
    else:
        magic = min(pattern.index(c) for c in MAGIC_CHARACTERS if c in pattern)
        candidates, hidden = _matching(_files_of(_listed(parent(pattern[:magic]))), pattern), []
    others: list[str] = []
    if inside or not is_pattern or pattern.endswith("*"):
        others = [uri for uri in candidates if not uri.endswith(suffixes)]
        candidates = [uri for uri in candidates if uri.endswith(suffixes)]
    files = _once(candidates)
    twice = sorted(set(candidates) - set(files))
    unread = {"hidden": hidden, "of another format": others}
    if strict and files and (hidden or others):
        raise BadInputError(
            f"{pattern} has files that would not be read as {noun} files: {_by_reason(unread)}",
            f"move them away, or name the {noun} files with a pattern that has their ending, such as *{suffixes[0]}",
        )
    _say_what_is_passed_over(pattern, {**unread, "found twice": twice})
    if not files:
        have = "has" if len(others) == 1 else "have"
        raise BadInputError(
            f"no {noun} file at {pattern!r}" + (f"; {some(others, SHOWN)} {have} another format" if others else ""),
            f"name a file, a folder or a pattern of {', '.join(suffixes)} files",
        )
    return files


def _listed(folder: str) -> list[str]:
    return store.at(folder).list(folder, follow_links=True)


def _files_of(uris: Iterable[str]) -> list[str]:
    """``uris`` without the keys that mark folders of S3."""
    return [uri for uri in uris if not uri.endswith("/")]


def _visible(uris: Iterable[str], folder: str) -> tuple[list[str], list[str]]:
    """``uris`` below ``folder`` without those that are hidden, or in a hidden folder; and these."""
    base = join(folder, "")
    hidden: list[str] = []
    visible: list[str] = []
    for uri in uris:
        names = uri.removeprefix(base).split("/")
        (hidden if any(name.startswith(".") and name != "." for name in names) else visible).append(uri)
    return visible, hidden


def _matching(uris: Sequence[str], pattern: str) -> list[str]:
    return list(filter(matcher(pattern), uris))


def _once(uris: Iterable[str]) -> list[str]:
    """``uris`` without those that lie in a linked folder and are found under their own path, too; sorted."""
    of_folder: dict[str, str] = {}
    found: dict[str, str] = {}
    for uri in uris:
        folder, name = parent(uri), uri.rpartition("/")[2]
        if folder not in of_folder:
            of_folder[folder] = store.canonical(folder)
        real = join(of_folder[folder], name)
        if real not in found or uri == real:
            found[real] = uri
    return sorted(found.values())


def _say_what_is_passed_over(pattern: str, found: Mapping[str, Sequence[str]]) -> None:
    """``found``: files by the reason that they do not count."""
    uris = [uri for of_reason in found.values() for uri in of_reason]
    if not uris:
        return
    are = "1 file is" if len(uris) == 1 else f"{len(uris):,} files are"
    looks_like_a_corpus = any(re.search(r"json|parquet|\.tar|\.tgz", uri.rpartition("/")[2], re.I) for uri in uris)
    say(
        f"{pattern}: {are} passed over ({_by_reason(found)})",
        logging.WARNING if looks_like_a_corpus else logging.INFO,
        event="passed_over",
        files=len(uris),
    )


def _by_reason(found: Mapping[str, Sequence[str]]) -> str:
    """``2 hidden: /b/.a.jsonl, /b/.b.jsonl; 1 of another format: /b/c.txt``."""
    return "; ".join(f"{len(of)} {reason}: {some(sorted(of), SHOWN)}" for reason, of in found.items() if of)
