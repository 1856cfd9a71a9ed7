"""One language of patterns of shard names, whether a flag, a form, a recipe or an earlier plan holds them."""

import fnmatch
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.corpus.recipes.shard_patterns import check_pattern, matching, split_patterns
from retro_ops.errors import BadInputError
from retro_ops.plan.plan import Shard, Source
from retro_ops.planning import recipe_shards
from retro_ops.planning.shard_choice import check_patterns, chosen

NAMES = [f"{number:02}_{category}" for number in range(12) for category in ("code", "docs")] + ["val_code", "val_docs"]
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("a,b", ["a", "b"]),
        ("{00..08}_*,val_*", ["{00..08}_*", "val_*"]),
        ("{a,b}_*,{c,{d,e}}", ["{a,b}_*", "{c,{d,e}}"]),
        ("[a,b]*,c", ["[a,b]*", "c"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
        ("a},b", ["a}", "b"]),
    ],
)
def test_commas_separate_patterns_except_in_braces_and_brackets(text: str, patterns: list[str]) -> None:
    assert split_patterns(text) == patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{00..02}_*", NAMES[:6]),
        ("0[0-2]_*", NAMES[:6]),
        ("{00,11}_docs", ["00_docs", "11_docs"]),
        ("val_{code,docs}", ["val_code", "val_docs"]),
        ("[!0v]*", [name for name in NAMES if name[0] == "1"]),
        ("??_code", [name for name in NAMES if name.endswith("code")][:-1]),
        ("VAL_*", []),
        ("00", []),
    ],
)
def test_what_a_pattern_matches(pattern: str, names: list[str]) -> None:
    check_pattern(pattern)
    assert matching(pattern, NAMES) == set(names)


NAME = st.text(alphabet="abAB01_.-", min_size=1, max_size=5)


@given(st.text(alphabet="abAB01_.-*?[]!^\\", min_size=1, max_size=8), st.lists(NAME, max_size=20))
def test_a_pattern_of_an_earlier_plan_keeps_its_meaning(pattern: str, names: list[str]) -> None:
    """They were Python's fnmatch, split at each comma; braces matched nothing, so no plan has any."""
    assert matching(pattern, names) == {name for name in names if fnmatch.fnmatchcase(name, pattern)}


def test_a_list_of_an_earlier_plan_is_taken_apart_as_before() -> None:
    for text in ("0[01]_*,val_*,03_*", "[!cw]*", "a,b,,c"):
        assert split_patterns(text) == [pattern for pattern in text.split(",") if pattern]


def by_flag(pattern: str) -> list[Shard]:
    shards = [Shard(name, "val" if name.startswith("val") else "train", ()) for name in NAMES]
    check_patterns(shards, {"indexed": None, "queried": pattern})
    return chosen(shards, None, split_patterns(pattern))


def by_recipe(pattern: str) -> list[Shard]:
    """Choose like ``recipe_shards.shards``, after it has read the parts."""
    text = f'categories: [c]\nsources:\n  - {{files: a.jsonl, category: c}}\nqueried: ["{pattern}"]\n'
    recipe = parse_recipe(text, "r.yaml")
    recipe_shards._check_patterns(recipe, NAMES)
    shards = [Shard(name, "val" if name.startswith("val") else "train", ()) for name in NAMES]
    return chosen(shards, None, recipe_shards._texts(recipe.queried), where="r.yaml: ")


WAYS = pytest.mark.parametrize("choose", [by_flag, by_recipe])


@WAYS
@pytest.mark.parametrize("pattern", ["{00..08,val}_*", "*_{code,docs}", "[!1]*", "*"])
def test_flags_and_recipes_choose_the_same(choose: Callable[[str], list[Shard]], pattern: str) -> None:
    queried = {shard.name for shard in choose(pattern) if shard.queried}
    assert queried == matching(pattern, NAMES) != set()


@WAYS
@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("02_dogs", "no shard matches '02_dogs' in 'queried'"),
        ("{20..29}_*", "no shard matches '{20..29}_*' in 'queried'"),
        ("{00..08_*", "{ and } do not match"),
        ("{a}_*", "braces must hold a list {a,b} or a range {00..29}"),
        ("[^0]*", "write [!…] to exclude characters"),
        ("[[:digit:]]*", "write ranges such as [a-z]"),
    ],
)
def test_flags_and_recipes_refuse_the_same_with_the_same_words(
    choose: Callable[[str], list[Shard]], pattern: str, said: str
) -> None:
    with pytest.raises(BadInputError) as found:
        choose(pattern)
    assert said in str(found.value)


ENDLESS = {
    "fifteen braces": "{a,b}" * 15 + "*",
    "a product of names": "{aa,bb}" * 20,
    "nested braces": "{a,{b,{c,d}}}" * 30,
    "nested deep": "{" * 3000 + "a,b" + "}" * 3000,
    "a range": "{0..999999999}",
    "ranges": "{1..999}*{1..999}",
    "long names": "{a,b}" * 13 + "x" * 9000,
    "long patterns": "{a,b}" * 10 + "x" * 9000 + "*",
    "brackets": "{a,b}" + "[" * 2000 + "]" * 2000,
    "patterns": ",".join(["{a,b}" * 10 + "*"] * 50),
}


@WAYS
@pytest.mark.parametrize("pattern", ENDLESS.values(), ids=ENDLESS.keys())
def test_no_pattern_of_shards_runs_without_end(choose: Callable[[str], list[Shard]], pattern: str) -> None:
    started = time.perf_counter()
    with pytest.raises(BadInputError) as found:
        choose(pattern)
    assert "more than" in str(found.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("pattern", ["*a" * 400 + "*b", "*" * 9000 + "b", "[ab]*" * 1000, "?*" * 3000])
def test_many_stars_do_not_look_back(pattern: str) -> None:
    started = time.perf_counter()
    assert matching(pattern, [f"{'a' * 240}{number}" for number in range(100)]) == set()
    assert time.perf_counter() - started < 5


def test_a_long_text_is_split_in_linear_time() -> None:
    started = time.perf_counter()
    assert split_patterns("a" * 1_000_000 + ",b") == ["a" * 1_000_000, "b"]
    assert time.perf_counter() - started < 5


def test_patterns_of_an_earlier_plan_are_checked_as_well() -> None:
    with pytest.raises(BadInputError, match=r"bad pattern '\{a' of shards: \{ and \} do not match"):
        chosen([Shard("a", "train", (Source("/x", 1, "x"),))], ["{a"], None)


def test_a_shard_that_is_neither_indexed_nor_queried_is_refused() -> None:
    """For a recipe: tests/stages/test_split_corpus.py."""
    shards = [Shard(name, "train", (Source("/x", 1, "x"),)) for name in ("a", "b", "c")]
    with pytest.raises(BadInputError, match=r"r\.yaml: 1 shard is neither indexed nor queried: b"):
        chosen(shards, ["c"], ["a"], where="r.yaml: ")


def test_no_other_code_matches_names_of_shards() -> None:
    folder = REPOSITORY / "retro_ops"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if "fnmatch" in path.read_text().split()}
    assert found == {"corpus/recipes/shard_patterns.py"}
