"""Parses a recipe and checks each of its values."""

import re
import string
from collections.abc import Callable, Mapping
from typing import TypeVar

from retro_ops.corpus.recipes import shard_patterns
from retro_ops.corpus.recipes.model import Output, Recipe, RecipeLine, Rule, format_of
from retro_ops.corpus.recipes.patterns import check_pattern, patterns, words
from retro_ops.corpus.recipes.yaml_nodes import Faults, Value, YamlList, YamlMapping, YamlText, load, near
from retro_ops.corpus.routing import ByField, ByHash, ByPath, Cut, Fixed
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import NAME_PATTERN, SPLITS, Split
from retro_ops.sizes import parse_bytes

RECIPE_KEYS = ("categories", "sources", "indexed", "queried")
SOURCE_KEYS = ("files", "members", "text", "category", "split", "cut", "shard", "max_documents", "optional")
PLACEHOLDERS = ("file", "category", "number")
DEFAULT_SHARD: dict[Split, str] = {"train": "{file}_{category}", "val": "{file}_{category}"}
SHARD_OF_BOTH_SPLITS: dict[Split, str] = {**DEFAULT_SHARD, "val": "val_{file}_{category}"}
"""Default names where one file feeds both splits, so that their shards get different names."""

T = TypeVar("T")


def parse_recipe(text: str, uri: str) -> Recipe:
    """Parse ``text``. Raises BadInputError that lists every fault as ``uri:line: what is wrong; what to do``."""
    faults = Faults(uri)
    keys = load(text, uri, faults)
    _known(keys, RECIPE_KEYS, faults)
    categories = tuple(_name(word, "category", faults) for word in words(keys, "categories", faults))
    entries = keys.get(YamlText("sources"))
    rules: list[Rule] = []
    if not isinstance(entries, YamlList) or not entries:
        faults.add(
            entries if entries is not None else keys,
            "'sources' must be a list with at least one entry",
            "write 'sources:', and below it '- files: …' for each source",
        )
    else:
        rules = [rule for entry in entries if (rule := _Source(entry, categories, faults).rule())]
    recipe = Recipe(
        uri,
        tuple(map(str, categories)),
        tuple(rules),
        indexed=patterns(keys, "indexed", faults, check=shard_patterns.check_pattern),
        queried=patterns(keys, "queried", faults, check=shard_patterns.check_pattern),
    )
    faults.raise_if_any()
    return recipe


class _Source:
    """Parses one entry of ``sources``. A bad value is recorded as a fault and replaced by a default."""

    def __init__(self, entry: Value, categories: tuple[str, ...], faults: Faults) -> None:
        self._entry, self._categories, self._faults = entry, categories, faults

    def rule(self) -> Rule | None:
        entry, faults = self._entry, self._faults
        if not isinstance(entry, YamlMapping):
            faults.add(entry, "a source must be a mapping", "start it with '- files: …' and put its other keys below")
            return None
        self._keys = entry
        _known(entry, SOURCE_KEYS, faults)
        files = patterns(entry, "files", faults, required=True)
        category, split = self._category(), self._split()
        outputs = self._outputs(split)
        members = self._members(files)
        optional = self._choice("optional", {"true": True, "false": False}, default=False)
        text = self._word("text") or "text"
        if category is None or split is None:
            return None
        return Rule(entry.line, files, category, split, outputs, str(text), members, optional)

    def _word(self, key: str) -> YamlText | None:
        value = self._keys.get(YamlText(key))
        if value is None:
            return None
        if not isinstance(value, YamlText) or not value:
            self._faults.add(value, f"{key!r} must be a single value", "write one value after the colon")
            return None
        return value

    def _choice(self, key: str, choices: Mapping[str, T], default: T) -> T:
        word = self._word(key)
        if word is not None and word not in choices:
            self._faults.add(word, f"{key!r} cannot be {str(word)!r}", f"write {' or '.join(choices)}")
        return choices.get(word, default) if word is not None else default

    def _category(self) -> Fixed | ByField | ByPath | None:
        value = self._keys.get(YamlText("category"))
        if isinstance(value, YamlText) and value:
            self._check_category(value)
            return Fixed(str(value))
        if isinstance(value, YamlMapping) and "path" in value:
            _known(value, ("path",), self._faults)
            categories = self._table(value, "path", self._check_category)
            for pattern in categories:
                self._check_pattern(pattern)
            return ByPath({str(k): str(v) for k, v in categories.items()})
        if isinstance(value, YamlMapping):
            return self._by_field(value, self._check_category)
        self._faults.add(
            value if value is not None else self._keys,
            "no valid 'category'",
            "write 'category: NAME', or a mapping with 'field' and 'values', or with 'path'",
        )
        return None

    def _split(self) -> Fixed | ByField | ByHash | None:
        value = self._keys.get(YamlText("split"), YamlText("train"))
        if isinstance(value, YamlText):
            self._check_split(value)
            return Fixed(str(value))
        if isinstance(value, YamlMapping) and ("val" in value or "seed" in value or "id" in value):
            return self._by_hash(value)
        if isinstance(value, YamlMapping):
            return self._by_field(value, self._check_split)
        hint = "write train or val, or a mapping with 'field' and 'values', or with 'val'"
        self._faults.add(value, "no valid 'split'", hint)
        return None

    def _by_hash(self, value: YamlMapping) -> ByHash:
        _known(value, ("val", "id", "seed"), self._faults)
        given = {key: word for key, word in value.items() if isinstance(word, YamlText)}
        share = _number(given.get(YamlText("val"), YamlText("")))
        if share is None or not 0 < share < 1:
            hint = "write it like 'val: 0.01'"
            self._faults.add(value.get(YamlText("val"), value), "the validation share must be between 0 and 1", hint)
            share = 0.5
        name = given.get(YamlText("id"))
        return ByHash(share, str(name) if name else None, str(given.get(YamlText("seed"), "0")))

    def _by_field(self, value: YamlMapping, check: Callable[[YamlText], None]) -> ByField:
        _known(value, ("field", "values"), self._faults)
        name = value.get(YamlText("field"))
        if not isinstance(name, YamlText) or not name:
            hint = "write it like 'field: meta.pile_set_name'"
            self._faults.add(value, "'field' must name a key of the documents", hint)
        return ByField(str(name), {str(k): str(v) for k, v in self._table(value, "values", check).items()})

    def _table(self, value: YamlMapping, key: str, check: Callable[[YamlText], None]) -> dict[YamlText, YamlText]:
        table = value.get(YamlText(key))
        if not isinstance(table, YamlMapping) or not table:
            at = table if table is not None else value
            hint = f"write one '{'PATTERN' if key == 'path' else 'VALUE'}: NAME' per line"
            self._faults.add(at, f"{key!r} must be a mapping with at least one entry", hint)
            return {}
        for text, name in table.items():
            if isinstance(name, YamlText):
                check(name)
            else:
                self._faults.add(name, f"{str(text)!r} must map to one name", "write one name after the colon")
        return {text: name for text, name in table.items() if isinstance(name, YamlText)}

    def _check_category(self, word: YamlText) -> None:
        if word not in self._categories:
            hint = f"{near(word, self._categories)} (or add it to 'categories')"
            self._faults.add(word, f"unknown category {str(word)!r}", hint)

    def _check_split(self, word: YamlText) -> None:
        if word not in SPLITS:
            self._faults.add(word, f"unknown split {str(word)!r}", f"write {' or '.join(SPLITS)}")

    def _check_pattern(self, word: YamlText) -> None:
        check_pattern(word, self._faults)

    def _members(self, files: tuple[RecipeLine, ...]) -> str | None:
        word = self._word("members")
        archives = [file for file in files if format_of(file.text) == "tar"]
        if word is None:
            for file in archives:
                hint = "add 'members: PATTERN' for the files to read in it"
                self._faults.add(file.line, f"{file.text!r} is an archive, so it needs 'members'", hint)
        else:
            self._check_pattern(word)
            if not archives:
                hint = "remove it, or name a .tar, .tar.gz or .tar.zst file"
                self._faults.add(word, "'members' is for archives, and none of the files is one", hint)
        return str(word) if word else None

    def _outputs(self, split: Fixed | ByField | ByHash | None) -> dict[Split, Output]:
        if isinstance(split, Fixed):
            sides = {split.value}
        elif isinstance(split, ByField):
            sides = set(split.values.values())
        else:
            sides = set(SPLITS)
        reached = [side for side in SPLITS if side in sides]
        cuts = self._by_split("cut", reached, Cut(), self._cut, value_keys=("documents", "bytes"))
        limits = self._by_split("max_documents", reached, None, self._count)
        defaults = SHARD_OF_BOTH_SPLITS if len(reached) > 1 else DEFAULT_SHARD
        names = {side: self._by_split("shard", [side], YamlText(defaults[side]), self._shard)[side] for side in reached}
        for side in reached:
            self._check_number(names[side], cuts[side], limits[side])
        shard = self._keys.get(YamlText("shard"))
        line = shard.line if shard is not None else self._keys.line
        return {s: Output(str(names[s]), cuts[s], limits[s], getattr(names[s], "line", 0) or line) for s in reached}

    def _by_split(
        self,
        key: str,
        sides: list[Split],
        default: T,
        read: Callable[[Value], T | None],
        value_keys: tuple[str, ...] = (),
    ) -> dict[Split, T]:
        """The value of ``key`` for each split: one value for all, or a mapping from split to value.

        ``value_keys``: keys of a mapping that is itself one value (``cut: {documents: …}``).
        """
        value = self._keys.get(YamlText(key))
        if value is None:
            return dict.fromkeys(sides, default)
        if isinstance(value, YamlMapping) and not any(name in value for name in value_keys):
            _known(value, SPLITS, self._faults)
            values = {side: value.get(YamlText(side)) for side in sides}
        else:
            values = dict.fromkeys(sides, value)
        # A value that both splits share is read once, so that its faults are recorded once.
        by_id = {id(v): read(v) for v in values.values() if v is not None}
        results = {side: by_id[id(v)] if v is not None else None for side, v in values.items()}
        return {side: default if result is None else result for side, result in results.items()}

    def _cut(self, value: Value) -> Cut | None:
        if value == "file":
            return Cut()
        if isinstance(value, YamlMapping):
            _known(value, ("documents", "bytes"), self._faults)
            if len(value) == 1:
                ((unit, amount),) = value.items()
                if unit == "documents":
                    count = self._count(amount)
                    return Cut("documents", count) if count else None
                if unit == "bytes" and isinstance(amount, YamlText):
                    try:
                        if size := parse_bytes(amount):
                            return Cut("bytes", size)
                    except BadInputError:
                        pass
                    self._faults.add(amount, f"{str(amount)!r} is not a size", "write it like 2GB or 512MiB")
                    return None
        hint = "write 'cut: file', 'cut: {documents: 1040000}' or 'cut: {bytes: 2GB}'"
        self._faults.add(value, "'cut' must be 'file', a number of documents or a size", hint)
        return None

    def _count(self, value: Value) -> int | None:
        if isinstance(value, YamlText) and re.fullmatch(r"[1-9][0-9_,]{0,20}", value):
            return int(re.sub("[_,]", "", value))
        shown = repr(str(value)) if isinstance(value, YamlText) else "this value"
        self._faults.add(value, f"{shown} is not a number of documents", "write a whole number above 0")
        return None

    def _shard(self, value: Value) -> YamlText | None:
        if not isinstance(value, YamlText) or not value:
            self._faults.add(value, "'shard' must be a single name", 'write it like "{file}_{category}", in quotes')
            return None
        hint = 'write it like "{file}_{category}", "{number:02}_{category}"'
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            self._faults.add(value, f"bad shard name {str(value)!r}: {error}", hint)
            return None
        for literal, name, form, conversion in parts:
            if re.search(r"[^A-Za-z0-9._-]", literal):
                allowed = "outside { } use only letters, digits, '.', '_' and '-'"
                self._faults.add(value, f"bad shard name {str(value)!r}", allowed)
            if name is not None and name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                unknown = f"bad shard name {str(value)!r}: unknown placeholder {{{name}}}"
                self._faults.add(value, unknown, f"use one of: {known}")
            elif name is not None and (conversion or not re.fullmatch(r"0\d|" if name == "number" else "", form or "")):
                self._faults.add(value, f"bad shard name {str(value)!r}: invalid format of {{{name}}}", hint)
        return value

    def _check_number(self, name: YamlText, cut: Cut, limit: int | None) -> None:
        at = name if name.line else self._keys
        if cut.by == "file" and "{number" in name:
            hint = "add 'cut: {documents: …}', or remove {number}"
            self._faults.add(at, "the shard name has {number}, but the source is not cut", hint)
        one_shard = cut.by == "documents" and limit is not None and limit <= cut.size
        if cut.by != "file" and "{number" not in name and not one_shard:
            self._faults.add(at, f"a cut source needs {{number}} in its shard name {str(name)!r}", "add {number:02}")


def _known(keys: YamlMapping, names: tuple[str, ...], faults: Faults) -> None:
    for key in keys:
        if key not in names:
            faults.add(key, f"unknown key {str(key)!r}", near(key, names))


def _name(word: YamlText, kind: str, faults: Faults) -> YamlText:
    if not re.fullmatch(NAME_PATTERN, word):
        faults.add(
            word, f"{kind} {str(word)!r} cannot be part of a folder name", "use letters, digits, '.', '_' and '-'"
        )
    return word


def _number(word: Value) -> float | None:
    try:
        return float(word) if isinstance(word, YamlText) else None
    except ValueError:
        return None
