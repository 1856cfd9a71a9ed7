"""Recipes: what they say, and what is said of those that are wrong."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ops.corpus.recipes import shipped, yaml_nodes
from retro_ops.corpus.recipes.model import Output, Recipe, RecipeLine
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.corpus.recipes.patterns import alternatives
from retro_ops.corpus.routing import ByField, ByHash, ByPath, Cut, Fixed
from retro_ops.errors import BadInputError

GOOD = """\
categories: [docs, code]
sources:
  - files: train/{00..02}.jsonl.zst
    category: {field: meta.kind, values: {D: docs, C: code}}
    split: {val: 0.25, id: id, seed: 7}
    cut: {bytes: 2GB}
    shard: {train: "{file}_{number:02}_{category}", val: "val_{file}_{number}_{category}"}
  - files: [more/a.tar.gz, more/b.tar.gz]
    members: "**/*.jsonl"
    category: {path: {"more/*/d*": docs, "**": code}}
    split: {field: side, values: {dev: val, no: train}}
    text: body
    max_documents: {val: 16400}
    optional: true
  - files: table.parquet
    category: docs
indexed: "*"
queried: ["{00..08}_*", val_*]
"""


def read(text: str) -> Recipe:
    return parse_recipe(text, "r.yaml")


def test_a_recipe_is_parsed_with_its_lines() -> None:
    found = read(GOOD)
    first, second, third = found.sources
    assert found.categories == ("docs", "code")
    assert first.files == (RecipeLine("train/{00..02}.jsonl.zst", 3),)
    assert first.category == ByField("meta.kind", {"D": "docs", "C": "code"})
    assert first.split == ByHash(0.25, "id", "7")
    assert first.outputs == {
        "train": Output("{file}_{number:02}_{category}", Cut("bytes", 2_000_000_000), None, 7),
        "val": Output("val_{file}_{number}_{category}", Cut("bytes", 2_000_000_000), None, 7),
    }
    assert second.category == ByPath({"more/*/d*": "docs", "**": "code"})
    # Words stay words: in other YAML `no` would be false.
    assert second.split == ByField("side", {"dev": "val", "no": "train"})
    assert (second.members, second.text, second.optional) == ("**/*.jsonl", "body", True)
    assert {split: (output.shard, output.max_documents) for split, output in second.outputs.items()} == {
        "train": ("{file}_{category}", None),
        "val": ("val_{file}_{category}", 16400),
    }
    assert (third.category, third.split, third.text) == (Fixed("docs"), Fixed("train"), "text")
    assert found.queried == (RecipeLine("{00..08}_*", 18), RecipeLine("val_*", 18))


def test_the_recipe_of_the_package_is_the_originals() -> None:
    found = read(shipped.text("massive_open_text") or "")
    assert set(found.categories) == {"wikipedia_en", "github", "pile_cc", "books3", "realnews"}
    assert all(rule.optional for rule in found.sources)
    pile, validation, news = found.sources
    assert len(alternatives(pile.files[0].text)) == 30
    assert isinstance(pile.category, ByField)
    assert pile.category.values == {
        "Wikipedia (en)": "wikipedia_en",
        "Github": "github",
        "Pile-CC": "pile_cc",
        "Books3": "books3",
    }
    assert (validation.split, validation.category) == (Fixed("val"), pile.category)
    assert news.outputs["train"].cut == Cut("documents", 1_040_000)
    assert news.outputs["val"].max_documents == 16_400
    assert shipped.names() == ["massive_open_text"]


WRONG: list[tuple[str, str, int, str]] = [
    ("C: code", "C: cood", 4, "unknown category 'cood'; did you mean 'code'? (or add it to 'categories')"),
    ("category: docs", "category: news", 16, "unknown category 'news'"),
    ("[docs, code]", "[docs, code, ../up]", 1, "category '../up' cannot be part of a folder name"),
    ("optional:", "optionl:", 14, "unknown key 'optionl'; did you mean 'optional'?"),
    ("optional: true", "optional: yes", 14, "'optional' cannot be 'yes'; write true or false"),
    ("queried:", "query:", 18, "unknown key 'query'; did you mean 'queried'?"),
    ("{00..02}.jsonl.zst", "{00..02.jsonl.zst", 3, "bad pattern 'train/{00..02.jsonl.zst': { and } do not match"),
    ("{00..02}.jsonl.zst", "{0002}.jsonl.zst", 3, "bad pattern"),
    ("{00..02}.jsonl.zst", "{date}.jsonl.zst", 3, "{date} is not supported in a recipe"),
    ("{00..02}.jsonl.zst", "{00..02}.csv", 3, "has no known format; the formats are .jsonl"),
    ("{00..02}.jsonl.zst", "{0..999999999}.jsonl", 3, "more than 20,000 names"),
    ("val_*]", "'[val_*']", 18, "bad pattern '[val_*'"),
    ("val: 0.25", "val: 1.5", 5, "the validation share must be between 0 and 1; write it like 'val: 0.01'"),
    ("val: 0.25, ", "", 5, "the validation share must be between 0 and 1"),
    ("dev: val", "dev: valid", 11, "unknown split 'valid'; write train or val"),
    ("field: side, ", "", 11, "'field' must name a key of the documents"),
    ("{bytes: 2GB}", "{bytes: much}", 6, "'much' is not a size"),
    ("{bytes: 2GB}", "{lines: 2}", 6, "unknown key 'lines'"),
    ("{bytes: 2GB}", "documents", 6, "'cut' must be 'file', a number of documents or a size"),
    ("{bytes: 2GB}", "{documents: 0}", 6, "'0' is not a number of documents"),
    ("{bytes: 2GB}", "file", 7, "the shard name has {number}, but the source is not cut"),
    (
        '"val_{file}_{number}_{category}"',
        '"val_{category}"',
        7,
        "a cut source needs {number} in its shard name",
    ),
    ("{number:02}", "{numbr:02}", 7, "unknown placeholder {numbr}; use one of: {file}, {category}, {number}"),
    ("{number:02}", "{number:>9}", 7, "invalid format of {number}"),
    ("{number:02}", "{number", 7, "bad shard name"),
    ("{file}_{number:02}", "{file}/{number:02}", 7, "outside { } use only letters"),
    (
        '    members: "**/*.jsonl"\n',
        "",
        8,
        "'more/a.tar.gz' is an archive, so it needs 'members'; add",
    ),
    (
        "files: table.parquet",
        "files: table.parquet\n    members: a",
        16,
        "'members' is for archives, and none of the files is one; remove it",
    ),
    ("category: docs", "categry: docs", 16, "unknown key 'categry'; did you mean 'category'?"),
    ("category: docs", "categry: docs", 15, "no valid 'category'"),
    ("files: table.parquet", "files:", 15, "'files' must hold plain text"),
    ("text: body", "text: [body]", 12, "'text' must be a single value"),
    ("16400", "some", 13, "'some' is not a number of documents"),
    ("text: body", "text: body\n    text: more", 13, "duplicate key 'text'"),
    ("{field: side", "{field: [side]", 11, "'field' must name a key of the documents"),
    ('"{file}_{number:02}_{category}"', "{file}_{number:02}_{category}", 7, "not valid YAML"),
    ("sources:", "sources: none\nmore:", 2, "'sources' must be a list with at least one entry; write 'sources:'"),
    (GOOD, "", 1, "a recipe must be a mapping"),
    (GOOD, "- a\n", 1, "a recipe must be a mapping"),
    (GOOD, "a: &a [*a]\n", 1, "this alias refers to itself"),
]


@pytest.mark.parametrize(("part", "instead", "line", "said"), WRONG, ids=[f"{w[1][:30]}" for w in WRONG])
def test_an_error_names_its_line(part: str, instead: str, line: int, said: str) -> None:
    assert part in GOOD
    with pytest.raises(BadInputError) as caught:
        read(GOOD.replace(part, instead, 1) if part != GOOD else instead)
    of_line = [fault for fault in str(caught.value).splitlines() if fault.startswith(f"r.yaml:{line}: ")]
    assert any(said in fault for fault in of_line), caught.value
    assert all("; " in fault for fault in of_line)  # What to do.


def test_all_errors_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("C: code", "C: cood").replace("queried", "query").replace("val: 0.25", "val: x")
    with pytest.raises(BadInputError) as caught:
        read(text)
    lines = [int(fault.split(":")[1]) for fault in str(caught.value).splitlines()]
    assert lines == [4, 5, 18]


def test_only_what_is_no_comment_or_line_decides_the_content() -> None:
    moved = read("# A remark\n\n" + GOOD)
    assert moved != read(GOOD)
    assert [rule.without_lines() for rule in moved.sources] == [rule.without_lines() for rule in read(GOOD).sources]


def what_is_wrong(text: str) -> list[str]:
    """Nothing, or a line for each fault; any other exception is raised."""
    try:
        read(text)
    except BadInputError as error:
        return str(error).splitlines()
    return []


@given(st.text(alphabet="categories: [docs]\nsources:  - files{}\"'&*,0.", max_size=200) | st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_clear_error(text: str) -> None:
    assert all(line.startswith("r.yaml:") for line in what_is_wrong(text))


@given(
    st.recursive(st.text(max_size=5), lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(), of, max_size=3))
)
def test_any_value_of_any_key_is_right_or_a_clear_error(value: Any) -> None:
    import yaml

    for key in ("files", "members", "text", "category", "split", "cut", "shard", "max_documents", "optional"):
        source = {"files": "a.jsonl", "category": "docs", key: value}
        text = yaml.safe_dump({"categories": ["docs"], "sources": [source], "indexed": value})
        assert all(line.startswith("r.yaml:") for line in what_is_wrong(text))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
UNBOUNDED = {
    "aliases": BOMB,
    "unknown keys": "".join(f"{'k' * 300}{n}: x\n" for n in range(2000)),
    "one long key": f"{'files' * 1000}: x\n",
    "many values": f"categories: [{', '.join('x' * 3000)}]",
    "nested lists": "sources: " + "[" * 800,
    "nested and closed": "sources: " + "[" * 300 + "]" * 300,
    "nested braces": "sources:\n- files: '" + "{" * 20_000 + "a,b" + "}" * 20_000 + "'\n  category: x\n",
    "long number": f"categories: [x]\nsources:\n- files: a.jsonl\n  category: x\n  max_documents: {'9' * 5000}\n",
    "many alternatives": "categories: x\nsources:\n- files: '{1..1000000000}.jsonl'\n  category: x\n",
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_no_recipe_runs_without_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_nodes, "MOST_VALUES", 5000 if name != "many values" else 2000)
    with pytest.raises(BadInputError) as caught:
        parse_recipe(UNBOUNDED[name], "/r.yaml")
    assert "/r.yaml:" in str(caught.value)
    assert str(caught.value).count("\n") <= 51
