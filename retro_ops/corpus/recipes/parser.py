"""Words of a recipe -> what they mean, each checked."""

import re
import string
from collections.abc import Callable, Mapping
from typing import TypeVar

from retro_ops.corpus.recipes import shard_patterns
from retro_ops.corpus.recipes.model import Line, Output, Recipe, Rule, format_of
from retro_ops.corpus.recipes.patterns import check_pattern, patterns, words
from retro_ops.corpus.recipes.yaml_nodes import Faults, Keys, Value, Word, Words, load, near
from retro_ops.corpus.routing import ByField, ByHash, ByPath, Cut, Fixed
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import NAME_PATTERN, SPLITS, Split
from retro_ops.sizes import parse_bytes

RECIPE_KEYS = ("categories", "sources", "indexed", "queried")
SOURCE_KEYS = ("files", "members", "text", "category", "split", "cut", "shard", "max_documents", "optional")
PLACEHOLDERS = ("file", "category", "number")
DEFAULT_SHARD: dict[Split, str] = {"train": "{file}_{category}", "val": "{file}_{category}"}
OF_BOTH_SPLITS: dict[Split, str] = {**DEFAULT_SHARD, "val": "val_{file}_{category}"}
"""Where documents of one file go to both, so that shards have different names."""

T = TypeVar("T")


def parse_recipe(text: str, uri: str) -> Recipe:
    """The recipe that ``text`` holds. BadInputError names every fault as ``uri:line: what; what to do``."""
    faults = Faults(uri)
    keys = load(text, uri, faults)
    _known(keys, RECIPE_KEYS, faults)
    categories = tuple(_name(word, "category", faults) for word in words(keys, "categories", faults))
    named = keys.get(Word("sources"))
    rules: list[Rule] = []
    if not isinstance(named, Words) or not named:
        faults.add(
            named if named is not None else keys, "no sources", "write 'sources:' with a list, '- files: …' each"
        )
    else:
        rules = [rule for entry in named if (rule := _Source(entry, categories, faults).rule())]
    found = Recipe(
        uri,
        tuple(map(str, categories)),
        tuple(rules),
        indexed=patterns(keys, "indexed", faults, check=shard_patterns.check_pattern),
        queried=patterns(keys, "queried", faults, check=shard_patterns.check_pattern),
    )
    faults.raise_if_any()
    return found


class _Source:
    """One entry of ``sources``. A value that is wrong is noted and stands in for nothing."""

    def __init__(self, entry: Value, categories: tuple[str, ...], faults: Faults) -> None:
        self._entry, self._categories, self._faults = entry, categories, faults

    def rule(self) -> Rule | None:
        entry, faults = self._entry, self._faults
        if not isinstance(entry, Keys):
            faults.add(entry, "a source is a mapping", "write '- files: …' with its other keys below")
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

    def _word(self, key: str) -> Word | None:
        value = self._keys.get(Word(key))
        if value is None:
            return None
        if not isinstance(value, Word) or not value:
            self._faults.add(value, f"{key!r} is not a text", "write one text after it")
            return None
        return value

    def _choice(self, key: str, of: Mapping[str, T], default: T) -> T:
        word = self._word(key)
        if word is not None and word not in of:
            self._faults.add(word, f"{key} is {str(word)!r}", f"write {' or '.join(of)}")
        return of.get(word, default) if word is not None else default

    def _category(self) -> Fixed | ByField | ByPath | None:
        value = self._keys.get(Word("category"))
        if isinstance(value, Word) and value:
            self._check_category(value)
            return Fixed(str(value))
        if isinstance(value, Keys) and "path" in value:
            _known(value, ("path",), self._faults)
            found = self._table(value, "path", self._check_category)
            for pattern in found:
                self._check_pattern(pattern)
            return ByPath({str(k): str(v) for k, v in found.items()})
        if isinstance(value, Keys):
            return self._by_field(value, self._check_category)
        self._faults.add(
            value if value is not None else self._keys,
            "no category",
            "write 'category: NAME', or a mapping with 'field' and 'values', or with 'path'",
        )
        return None

    def _split(self) -> Fixed | ByField | ByHash | None:
        value = self._keys.get(Word("split"), Word("train"))
        if isinstance(value, Word):
            self._check_split(value)
            return Fixed(str(value))
        if isinstance(value, Keys) and ("val" in value or "seed" in value or "id" in value):
            return self._by_hash(value)
        if isinstance(value, Keys):
            return self._by_field(value, self._check_split)
        self._faults.add(value, "no split", "write train or val, a mapping with 'field' and 'values', or with 'val'")
        return None

    def _by_hash(self, value: Keys) -> ByHash:
        _known(value, ("val", "id", "seed"), self._faults)
        given = {key: word for key, word in value.items() if isinstance(word, Word)}
        share = _number(given.get(Word("val"), Word("")))
        if share is None or not 0 < share < 1:
            self._faults.add(value.get(Word("val"), value), "the share of validation is no share", "write 'val: 0.01'")
            share = 0.5
        name = given.get(Word("id"))
        return ByHash(share, str(name) if name else None, str(given.get(Word("seed"), "0")))

    def _by_field(self, value: Keys, check: Callable[[Word], None]) -> ByField:
        _known(value, ("field", "values"), self._faults)
        name = value.get(Word("field"))
        if not isinstance(name, Word) or not name:
            self._faults.add(value, "no field to decide by", "write 'field: meta.pile_set_name' or the like")
        return ByField(str(name), {str(k): str(v) for k, v in self._table(value, "values", check).items()})

    def _table(self, value: Keys, key: str, check: Callable[[Word], None]) -> dict[Word, Word]:
        table = value.get(Word(key))
        if not isinstance(table, Keys) or not table:
            at = table if table is not None else value
            self._faults.add(at, f"{key!r} is not a mapping", "write 'what is found: what it becomes', a line each")
            return {}
        for found, meant in table.items():
            if isinstance(meant, Word):
                check(meant)
            else:
                self._faults.add(meant, f"{str(found)!r} becomes no text", "write one name after it")
        return {found: meant for found, meant in table.items() if isinstance(meant, Word)}

    def _check_category(self, word: Word) -> None:
        if word not in self._categories:
            hint = f"{near(word, self._categories)} Else add it to 'categories'"
            self._faults.add(word, f"unknown category {str(word)!r}", hint)

    def _check_split(self, word: Word) -> None:
        if word not in SPLITS:
            self._faults.add(word, f"unknown split {str(word)!r}", f"write {' or '.join(SPLITS)}")

    def _check_pattern(self, word: Word) -> None:
        check_pattern(word, self._faults)

    def _members(self, files: tuple[Line, ...]) -> str | None:
        word = self._word("members")
        archives = [file for file in files if format_of(file.text) == "tar"]
        if word is None:
            for file in archives:
                self._faults.add(file.line, f"{file.text!r} is an archive", "say which of its files, as 'members: …'")
        else:
            self._check_pattern(word)
            if not archives:
                self._faults.add(
                    word, "members of what is no archive", "leave it out, or name a .tar, .tar.gz or .tar.zst"
                )
        return str(word) if word else None

    def _outputs(self, split: Fixed | ByField | ByHash | None) -> dict[Split, Output]:
        if isinstance(split, Fixed):
            sides = {split.value}
        elif isinstance(split, ByField):
            sides = set(split.values.values())
        else:
            sides = set(SPLITS)
        reached = [side for side in SPLITS if side in sides]
        cuts = self._by_split("cut", reached, Cut(), self._cut, of_value=("documents", "bytes"))
        limits = self._by_split("max_documents", reached, None, self._count)
        defaults = OF_BOTH_SPLITS if len(reached) > 1 else DEFAULT_SHARD
        names = {side: self._by_split("shard", [side], Word(defaults[side]), self._shard)[side] for side in reached}
        for side in reached:
            self._check_number(names[side], cuts[side], limits[side])
        shard = self._keys.get(Word("shard"))
        line = shard.line if shard is not None else self._keys.line
        return {s: Output(str(names[s]), cuts[s], limits[s], getattr(names[s], "line", 0) or line) for s in reached}

    def _by_split(
        self,
        key: str,
        sides: list[Split],
        default: T,
        read: Callable[[Value], T | None],
        of_value: tuple[str, ...] = (),
    ) -> dict[Split, T]:
        """One value for all splits, or a mapping with one for each."""
        value = self._keys.get(Word(key))
        if value is None:
            return dict.fromkeys(sides, default)
        if isinstance(value, Keys) and not any(name in value for name in of_value):
            _known(value, SPLITS, self._faults)
            of = {side: value.get(Word(side)) for side in sides}
        else:
            of = dict.fromkeys(sides, value)
        read_once = {id(v): read(v) for v in of.values() if v is not None}
        found = {side: read_once[id(v)] if v is not None else None for side, v in of.items()}
        return {side: default if entry is None else entry for side, entry in found.items()}

    def _cut(self, value: Value) -> Cut | None:
        if value == "file":
            return Cut()
        if isinstance(value, Keys):
            _known(value, ("documents", "bytes"), self._faults)
            if len(value) == 1:
                ((unit, amount),) = value.items()
                if unit == "documents":
                    count = self._count(amount)
                    return Cut("documents", count) if count else None
                if unit == "bytes" and isinstance(amount, Word):
                    try:
                        if size := parse_bytes(amount):
                            return Cut("bytes", size)
                    except BadInputError:
                        pass
                    self._faults.add(amount, f"{str(amount)!r} is no size", "write it like 2GB or 512MiB")
                    return None
        self._faults.add(value, "cut by what?", "write 'file', 'documents: 1040000' or 'bytes: 2GB'")
        return None

    def _count(self, value: Value) -> int | None:
        if isinstance(value, Word) and re.fullmatch(r"[1-9][0-9_,]*", value):
            return int(re.sub("[_,]", "", value))
        shown = repr(str(value)) if isinstance(value, Word) else "this"
        self._faults.add(value, f"{shown} is no number of documents", "write a whole number above 0")
        return None

    def _shard(self, value: Value) -> Word | None:
        if not isinstance(value, Word) or not value:
            self._faults.add(value, "a shard's name is a text", 'write it like "{file}_{category}", in quotes')
            return None
        hint = 'write it like "{file}_{category}", "{number:02}_{category}"'
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            self._faults.add(value, f"bad name {str(value)!r}: {error}", hint)
            return None
        for literal, name, form, conversion in parts:
            if re.search(r"[^A-Za-z0-9._-]", literal):
                self._faults.add(value, f"bad name {str(value)!r}", "beside { } use letters, digits, '.', '_' and '-'")
            if name is not None and name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                self._faults.add(value, f"bad name {str(value)!r}: unknown {{{name}}}", f"there is {known}")
            elif name is not None and (conversion or not re.fullmatch(r"0\d|" if name == "number" else "", form or "")):
                self._faults.add(value, f"bad name {str(value)!r}: {{{name}}} is written wrongly", hint)
        return value

    def _check_number(self, name: Word, cut: Cut, limit: int | None) -> None:
        at = name if name.line else self._keys
        if cut.by == "file" and "{number" in name:
            self._faults.add(at, "{number} of what is not cut", "add 'cut: {documents: …}', or leave {number} out")
        one_shard = cut.by == "documents" and limit is not None and limit <= cut.size
        if cut.by != "file" and "{number" not in name and not one_shard:
            self._faults.add(at, f"shards that are cut need a number, and {str(name)!r} has none", "add {number:02}")


def _known(keys: Keys, names: tuple[str, ...], faults: Faults) -> None:
    for key in keys:
        if key not in names:
            faults.add(key, f"unknown key {str(key)!r}", near(key, names))


def _name(word: Word, kind: str, faults: Faults) -> Word:
    if not re.fullmatch(NAME_PATTERN, word):
        faults.add(
            word, f"{kind} {str(word)!r} cannot be part of a folder name", "use letters, digits, '.', '_' and '-'"
        )
    return word


def _number(word: Value) -> float | None:
    try:
        return float(word) if isinstance(word, Word) else None
    except ValueError:
        return None
