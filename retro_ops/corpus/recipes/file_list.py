"""Lists the files of a recipe and checks the shards that they would become."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from retro_ops import uris
from retro_ops.corpus import finding
from retro_ops.corpus.recipes.model import SUFFIXES, Output, Recipe, RecipeLine, Rule, suffix_of
from retro_ops.corpus.recipes.patterns import alternatives
from retro_ops.corpus.recipes.yaml_nodes import Faults
from retro_ops.corpus.routing import ByPath, LeftOut, by_path
from retro_ops.errors import BadInputError
from retro_ops.plan import digests
from retro_ops.plan.plan import NAME_PATTERN
from retro_ops.plan.source_list import SourceFile
from retro_ops.plan.stage_graph import STAGES
from retro_ops.sizes import some
from retro_ops.storage import store
from retro_ops.uris import resolve

LONGEST_NAME = 100
NUMBER = "\0"
"""Stands for any number in a shard name while names are compared."""


@dataclass(frozen=True)
class ListedFile:
    """A corpus file and the rule of the recipe that lists it."""

    uri: str
    name: str
    """Folder name for its parts."""
    rule: int
    """Position of the rule in the recipe's sources."""
    line: int
    """Line of the recipe that names the file."""


def find(recipe: Recipe, folder: str) -> tuple[list[ListedFile], tuple[str, ...]]:
    """All files in recipe order, and one message for each optional file that is missing.

    Raises BadInputError that lists every fault with its line.
    """
    faults = Faults(recipe.uri)
    files: list[ListedFile] = []
    absent: list[str] = []
    for number, rule in enumerate(recipe.sources):
        for pattern in rule.files:
            uris_of_pattern = _files(rule, pattern, folder, absent, faults, recipe.uri)
            files += [ListedFile(uri, _name(uri, folder), number, pattern.line) for uri in uris_of_pattern]
    files = _named_once(files, faults)
    if not files and not faults:
        faults.add(1, f"none of its files exists below {folder}", "set the source folder, or correct 'files'")
    check_shards(recipe, files, _categories(recipe, files, folder, faults), faults)
    faults.raise_if_any()
    absent += _unreached(recipe, {file.rule for file in files})
    return files, tuple(absent)


def _files(rule: Rule, pattern: RecipeLine, folder: str, absent: list[str], faults: Faults, recipe: str) -> list[str]:
    """Files that match ``pattern``. Every name that its braces expand to must exist, so that none goes missing."""
    found: dict[str, None] = {}
    missing = []
    for name in alternatives(pattern.text):
        uri = resolve(name, uris.join(folder, "recipe"))
        try:
            found |= dict.fromkeys(finding.find(uri, SUFFIXES))
        except BadInputError:
            missing.append(uri)
    if missing:
        shown = some(missing, 3)
        if rule.optional:
            absent.append(f"{recipe}:{pattern.line}: {shown} does not exist; the rest is built")
        else:
            hint = "correct 'files', set the source folder, or add 'optional: true'"
            faults.add(pattern.line, f"no file at {shown}", hint)
    unknown = [uri for uri in found if suffix_of(uri) is None]
    for uri in unknown[:3]:
        faults.add(pattern.line, f"{uri} has no known format", f"the formats are {', '.join(SUFFIXES)}")
    return [uri for uri in found if uri not in unknown]


def _name(uri: str, folder: str) -> str:
    """Name of a file by its path in ``folder``: ``/data/Pile/train/00.jsonl.zst`` in ``/data`` -> ``Pile-train-00``."""
    base = uris.join(folder, "")
    path = uri.removeprefix(base) if uri.startswith(base) else uri.partition("://")[2].partition("#sha256=")[0] or uri
    path = path.removesuffix(suffix_of(path) or "")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip(".-_") or "file"


def _named_once(files: list[ListedFile], faults: Faults) -> list[ListedFile]:
    """``files`` without repetitions. A name that is too long or that two files share gets a digest."""
    by_uri: dict[str, ListedFile] = {}
    for file in files:
        first = by_uri.setdefault(file.uri, file)
        if first.rule != file.rule:
            faults.add(
                file.line,
                f"{file.uri} is already named in line {first.line}",
                "name it in one source only, and route its documents by 'category' and 'split'",
            )
    counts: dict[str, int] = {}
    for file in by_uri.values():
        counts[file.name] = counts.get(file.name, 0) + 1
    return [
        file
        if counts[file.name] == 1 and len(file.name) <= LONGEST_NAME
        else ListedFile(
            file.uri, f"{file.name[-LONGEST_NAME:].lstrip('.-_')}-{digests.digest(file.uri)[:8]}", file.rule, file.line
        )
        for file in by_uri.values()
    ]


def resolved(patterns: ByPath, folder: str) -> ByPath:
    """``patterns`` with paths resolved against ``folder``, to compare with the URIs of files."""
    base = uris.join(folder, "recipe")
    return ByPath({resolve(pattern, base): category for pattern, category in patterns.patterns.items()})


def _categories(recipe: Recipe, files: Sequence[ListedFile], folder: str, faults: Faults) -> dict[str, tuple[str, ...]]:
    """Categories that the documents of each file may get.

    A file that is routed by its path must match a pattern; members of archives are not known yet.
    """
    routes = {
        number: resolved(rule.category, folder)
        for number, rule in enumerate(recipe.sources)
        if isinstance(rule.category, ByPath) and not rule.members
    }
    by_uri: dict[str, tuple[str, ...]] = {}
    for file in files:
        rule = recipe.sources[file.rule]
        category = by_path(routes[file.rule], file.uri) if file.rule in routes else None
        if isinstance(category, LeftOut):
            hint = "add a pattern, or remove the file from 'files'"
            faults.add(rule.line, f"no pattern of 'path' matches {file.uri}", hint)
        by_uri[file.uri] = (category,) if isinstance(category, str) else rule.categories()
    return by_uri


def check_shards(
    recipe: Recipe, files: Sequence[ListedFile], categories: Mapping[str, Sequence[str]], faults: Faults
) -> None:
    """Record a fault wherever two sources, splits, categories or equally named files would write the same shard."""
    seen: dict[str, tuple[int, str]] = {}
    for file in files:
        rule = recipe.sources[file.rule]
        for split, output in rule.outputs.items():
            for category in categories[file.uri]:
                name = shard_name(output, file.uri, category, None)
                # Without {file} a shard deliberately collects all files of its source, unless it is numbered per file.
                one_file = "{file}" in output.shard or "{number" in output.shard
                writer = f"{split} {category} of {file.uri if one_file else f'the source in line {rule.line}'}"
                if not re.fullmatch(NAME_PATTERN, name.replace(NUMBER, "0")):
                    shown = name.replace(NUMBER, "0")
                    hint = "set 'shard' to a name of letters, digits, '.', '_' and '-'"
                    faults.add(output.line, f"shard name {shown!r} cannot be a folder name", hint)
                line, other = seen.setdefault(name, (output.line, writer))
                if other != writer:
                    _overlap(faults, output.line, name.replace(NUMBER, "…"), other, line, writer)
    _check_numbers(seen, faults)


def _check_numbers(seen: dict[str, tuple[int, str]], faults: Faults) -> None:
    """Compare numbered names with all others: ``NN_realnews`` may equal ``07_realnews``."""
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
        "give one of them a different 'shard', such as \"val_{file}_{category}\"",
    )


def shard_name(output: Output, uri: str, category: str, number: int | None) -> str:
    """Name of a shard. ``number`` None puts NUMBER in its place."""
    name = uris.file_name(uri)
    stem = name.removesuffix(suffix_of(name) or "")
    template = re.sub(r"\{number(:\w*)?\}", NUMBER, output.shard) if number is None else output.shard
    return template.format(file=stem, category=category, number=number)


def _unreached(recipe: Recipe, rules: set[int]) -> list[str]:
    """A message for each declared category that no file can have documents for."""
    reached = {category for number in rules for category in recipe.sources[number].categories()}
    return [
        f"category {category!r} is absent: none of its files exists; the rest is built"
        for category in recipe.categories
        if category not in reached
    ]


def source_file(recipe: Recipe, folder: str, file: ListedFile, settings: tuple[str, float, int]) -> SourceFile:
    """The entry of ``file`` in sources.json.

    ``settings``: how bad lines are handled; part of the digest, since they decide which documents are kept.
    """
    where = store.at(file.uri)
    rule = recipe.sources[file.rule]
    fingerprint = where.fingerprint(file.uri)
    content = [fingerprint, asdict(rule.without_lines()), *settings]
    # The path decides the category if the rule says so; the file name decides the shard name.
    path = file.uri.removeprefix(uris.join(folder, ""))
    content.append(path if isinstance(rule.category, ByPath) else path.rpartition("/")[2])
    kinds = [type(rule.category).__name__, type(rule.split).__name__]
    digest = digests.digest(STAGES["split-corpus"].code_version, kinds, content)
    return SourceFile(file.name, file.uri, where.size(file.uri), fingerprint, file.rule, digest)
