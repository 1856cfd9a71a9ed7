"""Combines the parts of ``split-corpus`` into the shards of a plan."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from retro_ops.corpus.recipes.model import Recipe, RecipeLine
from retro_ops.corpus.recipes.shard_patterns import matching, no_match
from retro_ops.corpus.recipes.yaml_nodes import Faults
from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.plan.plan import Shard, Source, Split, check_name
from retro_ops.plan.source_list import SourceFile, Sources
from retro_ops.planning.shard_choice import chosen
from retro_ops.progress import say
from retro_ops.sizes import counted
from retro_ops.storage import read_ahead


@dataclass(frozen=True)
class RecipePart:
    """The documents that a source file contributes to a shard."""

    shard: str
    split: Split
    category: str
    documents: int
    source: Source
    file: SourceFile


def shards(listed: Sources, recipe: Recipe) -> list[Shard]:
    """Shards sorted by name, training first, with their parts in the order of the source files.

    Logs missing categories and the documents that were left out. Raises BadInputError if a file is not split yet, if
    two splits or sources wrote the same shard, if no shard matches a pattern of the recipe, or if a shard is neither
    indexed nor queried.
    """
    reports = read_ahead.side_by_side(partial(_report, listed), listed.files)
    parts = [part for file, made in zip(listed.files, reports, strict=True) for part in _parts(listed, file, made)]
    _say_what_is_absent(listed, recipe, parts, reports)
    by_name: dict[str, list[RecipePart]] = {}
    for part in parts:
        by_name.setdefault(check_name("shard", part.shard), []).append(part)
    for of_shard in by_name.values():
        check_one_writer(of_shard)
    sides: dict[str, Split] = {name: of_shard[0].split for name, of_shard in by_name.items()}
    found = [Shard(name, sides[name], tuple(part.source for part in of)) for name, of in by_name.items()]
    _check_patterns(recipe, list(by_name))
    found = chosen(found, _texts(recipe.indexed), _texts(recipe.queried), where=f"{recipe.uri}: ")
    return sorted(found, key=lambda shard: (shard.split == "val", shard.name))


def _report(listed: Sources, file: SourceFile) -> dict[str, Any]:
    uri = listed.report_uri(file)
    made = report.read(uri)
    if made is None:
        raise BadInputError(
            f"{file.uri} is not split yet: {uri} does not exist",
            f"run `retro-ops split-corpus --file {file.name}` first",
        )
    return made


def _parts(listed: Sources, file: SourceFile, made: dict[str, Any]) -> list[RecipePart]:
    return [
        RecipePart(
            part["shard"],
            part["split"],
            part["category"],
            part["documents"],
            listed.part(file, part),
            file,
        )
        for part in made["details"]["parts"]
    ]


def check_one_writer(parts: Sequence[RecipePart]) -> None:
    """Raise BadInputError if the parts of a shard differ in split, category or source."""
    first = parts[0]
    for part in parts[1:]:
        if (part.split, part.category, part.file.rule) != (first.split, first.category, first.file.rule):
            raise BadInputError(
                f"shard {part.shard!r} was written twice: with {first.split} {first.category} of {first.file.uri}, and "
                f"with {part.split} {part.category} of {part.file.uri}",
                "give one of them a different 'shard' in the recipe",
            )


def _texts(patterns: Sequence[RecipeLine]) -> list[str] | None:
    return [pattern.text for pattern in patterns] or None


def _check_patterns(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise BadInputError if a pattern of the recipe matches no shard; it names the line."""
    faults = Faults(recipe.uri)
    for key, patterns in (("indexed", recipe.indexed), ("queried", recipe.queried)):
        for pattern in patterns:
            if not matching(pattern.text, names):
                faults.add(pattern.line, *no_match(pattern.text, key, names))
    faults.raise_if_any()


def _say_what_is_absent(
    listed: Sources, recipe: Recipe, parts: Sequence[RecipePart], reports: Sequence[dict[str, Any]]
) -> None:
    for message in listed.absent:
        say(f"plan: {message}", logging.WARNING, event="absent")
    there = {part.category for part in parts}
    for category in recipe.categories:
        if category not in there and not any(f"category {category!r}" in message for message in listed.absent):
            say(f"plan: category {category!r} is absent: no document belongs to it", logging.WARNING, event="absent")
    left_out: Counter[str] = Counter()
    for made in reports:
        left_out.update(made["details"]["left_out"])
    documents = sum(part.documents for part in parts)
    where = f"{counted(len(parts), 'part')} of {counted(len(listed.files), 'file')}"
    said = f"plan: {counted(documents, 'document')} in {where}"
    if left_out:
        shown = ", ".join(f"{count:,} {reason!r}" for reason, count in left_out.most_common(10))
        said += f"; {left_out.total():,} left out: {shown}" + (", …" if len(left_out) > 10 else "")
    if bad := sum(made["counts"]["bad_records"] for made in reports):
        said += f"; {counted(bad, 'bad record')} set aside next to the parts"
    say(said, event="parts", documents=documents, left_out=left_out.total())
