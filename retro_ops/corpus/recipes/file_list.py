"""The files that a recipe names, and whether what would become of them can be."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from retro_ops import uris
from retro_ops.corpus import json_lines
from retro_ops.corpus.recipes.model import SUFFIXES, Line, Output, Recipe, Rule, suffix_of
from retro_ops.corpus.recipes.patterns import alternatives
from retro_ops.corpus.recipes.yaml_nodes import Faults
from retro_ops.corpus.routing import ByPath, LeftOut, by_path
from retro_ops.errors import BadInputError
from retro_ops.plan import digests
from retro_ops.plan.plan import NAME_PATTERN
from retro_ops.plan.source_list import SourceFile
from retro_ops.plan.stage_graph import STAGES
from retro_ops.storage import store
from retro_ops.uris import resolve

LONGEST_NAME = 100
NUMBER = "\0"
"""Stands for any number in the name of a shard, while names are compared."""


@dataclass(frozen=True)
class Found:
    """A file, and the number of the rule that named it. ``name``: of its folder; ``line``: of the recipe."""

    uri: str
    name: str
    rule: int
    line: int


def find(recipe: Recipe, folder: str) -> tuple[list[Found], tuple[str, ...]]:
    """The files, in order, and what is absent that may be. BadInputError for what is wrong, with its lines."""
    faults = Faults(recipe.uri)
    files: list[Found] = []
    absent: list[str] = []
    for number, rule in enumerate(recipe.sources):
        for pattern in rule.files:
            found = _files(rule, pattern, folder, absent, faults, recipe.uri)
            files += [Found(uri, _name(uri, folder), number, pattern.line) for uri in found]
    files = _named_once(files, faults)
    if not files and not faults:
        faults.add(
            1, f"none of its files is there, below {folder}", "say where they are (source folder), or mend 'files'"
        )
    check_shards(recipe, files, _categories(recipe, files, folder, faults), faults)
    faults.raise_if_any()
    absent += _unreached(recipe, {file.rule for file in files})
    return files, tuple(absent)


def _files(rule: Rule, pattern: Line, folder: str, absent: list[str], faults: Faults, recipe: str) -> list[str]:
    """Each name that braces stand for must be there: one of thirty that is missing is no pattern that found 29."""
    found: dict[str, None] = {}
    missing = []
    for name in alternatives(pattern.text):
        uri = resolve(name, uris.join(folder, "recipe"))
        try:
            found |= dict.fromkeys(json_lines.find(uri, SUFFIXES))
        except BadInputError:
            missing.append(uri)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        if rule.optional:
            absent.append(f"{recipe}:{pattern.line}: {shown} is not there, and the rest is built")
        else:
            faults.add(pattern.line, f"no file at {shown}", "mend 'files', say where it is, or add 'optional: true'")
    unknown = [uri for uri in found if suffix_of(uri) is None]
    for uri in unknown[:3]:
        faults.add(pattern.line, f"{uri} has no known format", f"there is {', '.join(SUFFIXES)}")
    return [uri for uri in found if uri not in unknown]


def _name(uri: str, folder: str) -> str:
    """``/data/Pile/train/00.jsonl.zst`` below ``/data`` -> ``Pile-train-00``."""
    base = uris.join(folder, "")
    path = uri.removeprefix(base) if uri.startswith(base) else uri.partition("://")[2] or uri
    path = path.removesuffix(suffix_of(path) or "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip(".-_") or "file"


def _named_once(files: list[Found], faults: Faults) -> list[Found]:
    """Without repetitions; names that two files would have, or that are too long, get a digest."""
    by_uri: dict[str, Found] = {}
    for file in files:
        first = by_uri.setdefault(file.uri, file)
        if first.rule != file.rule:
            faults.add(
                file.line,
                f"{file.uri} is named in line {first.line} too",
                "let one source name it, and route its documents by 'category' and 'split'",
            )
    counts: dict[str, int] = {}
    for file in by_uri.values():
        counts[file.name] = counts.get(file.name, 0) + 1
    return [
        file
        if counts[file.name] == 1 and len(file.name) <= LONGEST_NAME
        else Found(
            file.uri, f"{file.name[-LONGEST_NAME:].lstrip('.-_')}-{digests.digest(file.uri)[:8]}", file.rule, file.line
        )
        for file in by_uri.values()
    ]


def resolved(patterns: ByPath, folder: str) -> ByPath:
    """Patterns as files are written."""
    base = uris.join(folder, "recipe")
    return ByPath({resolve(pattern, base): category for pattern, category in patterns.patterns.items()})


def _categories(recipe: Recipe, files: Sequence[Found], folder: str, faults: Faults) -> dict[str, tuple[str, ...]]:
    """Those that the documents of each file may have. A file whose path decides must match a pattern; of what is in an
    archive, nobody knows yet."""
    routes = {
        number: resolved(rule.category, folder)
        for number, rule in enumerate(recipe.sources)
        if isinstance(rule.category, ByPath) and not rule.members
    }
    found: dict[str, tuple[str, ...]] = {}
    for file in files:
        rule = recipe.sources[file.rule]
        category = by_path(routes[file.rule], file.uri) if file.rule in routes else None
        if isinstance(category, LeftOut):
            hint = "add one, or take the file out of 'files'"
            faults.add(rule.line, f"no pattern of 'path' matches {file.uri}", hint)
        found[file.uri] = (category,) if isinstance(category, str) else rule.categories()
    return found


def check_shards(
    recipe: Recipe, files: Sequence[Found], categories: Mapping[str, Sequence[str]], faults: Faults
) -> None:
    """No two sources, splits, categories or files of one name may write the same shard."""
    seen: dict[str, tuple[int, str]] = {}
    for file in files:
        rule = recipe.sources[file.rule]
        for split, output in rule.outputs.items():
            for category in categories[file.uri]:
                name = shard_name(output, file.uri, category, None)
                # Without {file} a shard is made of all files of its source, on purpose, unless numbers count in each.
                one_file = "{file}" in output.shard or "{number" in output.shard
                writer = f"{split} {category} of {file.uri if one_file else f'the source in line {rule.line}'}"
                if not re.fullmatch(NAME_PATTERN, name.replace(NUMBER, "0")):
                    shown = name.replace(NUMBER, "0")
                    faults.add(
                        output.line, f"shard name {shown!r} cannot be a folder name", "give 'shard' a name of its own"
                    )
                line, other = seen.setdefault(name, (output.line, writer))
                if other != writer:
                    _overlap(faults, output.line, name.replace(NUMBER, "…"), other, line, writer)
    _check_numbers(seen, faults)


def _check_numbers(seen: dict[str, tuple[int, str]], faults: Faults) -> None:
    """Names with a number against all others: ``NN_realnews`` may be ``07_realnews``."""
    numbered = {name: where for name, where in seen.items() if NUMBER in name}
    for name, (line, writer) in numbered.items():
        pattern = re.compile(r"\d+".join(re.escape(part) for part in name.split(NUMBER)))
        for other, (other_line, other_writer) in seen.items():
            tried = [other.replace(NUMBER, number) for number in ("0", "00", "11", "100")]
            if other != name and any(pattern.fullmatch(shown) for shown in tried):
                _overlap(faults, line, other.replace(NUMBER, "…"), other_writer, other_line, writer)


def _overlap(faults: Faults, line: int, name: str, first: str, first_line: int, second: str) -> None:
    faults.add(
        line,
        f"shard {name!r} would be written twice: by {first} (line {first_line}) and by {second}",
        "give one of them another 'shard', such as \"val_{file}_{category}\"",
    )


def shard_name(output: Output, uri: str, category: str, number: int | None) -> str:
    """Name of a shard; without a number, with NUMBER in its place."""
    name = uri.rpartition("/")[2]
    stem = name.removesuffix(suffix_of(name) or "")
    template = re.sub(r"\{number(:\w*)?\}", NUMBER, output.shard) if number is None else output.shard
    return template.format(file=stem, category=category, number=number)


def _unreached(recipe: Recipe, rules: set[int]) -> list[str]:
    """Declared categories that no file can have documents for."""
    reached = {category for number in rules for category in recipe.sources[number].categories()}
    return [
        f"category {category!r} is absent: none of its files is there, and the rest is built"
        for category in recipe.categories
        if category not in reached
    ]


def source_file(recipe: Recipe, folder: str, file: Found, settings: tuple[str, float, int]) -> SourceFile:
    """``settings``: what becomes of lines that are no document; part of the digest, as they decide what is kept."""
    where = store.at(file.uri)
    rule = recipe.sources[file.rule]
    fingerprint = where.fingerprint(file.uri)
    content = [fingerprint, asdict(rule.without_lines()), *settings]
    # Where the name of the file decides: the category by its path, the shard's by its stem.
    path = file.uri.removeprefix(uris.join(folder, ""))
    content.append(path if isinstance(rule.category, ByPath) else path.rpartition("/")[2])
    kinds = [type(rule.category).__name__, type(rule.split).__name__]
    digest = digests.digest(STAGES["split-corpus"].code_version, kinds, content)
    return SourceFile(file.name, file.uri, where.size(file.uri), fingerprint, file.rule, digest)
