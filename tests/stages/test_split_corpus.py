"""list-sources, split-corpus and what `plan` makes of them, on real files of every format; on local files and S3."""

import gzip
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from nightly import EXACT
from runs import Done, compare, whole_run
from samples import Run

from retro_ops.corpus import line_streams
from retro_ops.corpus.recipes import parser
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, source_list
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Shard, Source
from retro_ops.plan.source_list import Sources
from retro_ops.planning import recipe_shards
from retro_ops.storage import store
from retro_ops.versions import history

DOCUMENTS = [
    {
        "id": number,
        "text": f"Document {number} — naïve café 🎉\n" * 3,
        "meta": {"kind": "dcx"[number % 3], "n": [number]},
    }
    for number in range(30)
]
LINES = [json.dumps(document, ensure_ascii=False).encode() for document in DOCUMENTS]
CATEGORY = "{field: meta.kind, values: {d: docs, c: code}}"
RECIPE = f"""\
categories: [docs, code]
sources:
  - files: FILE
    category: {CATEGORY}
"""


class Corpus:
    """A folder with source files and a recipe, and the stages on it."""

    def __init__(self, folder: str, root: str, run: Run) -> None:
        self.folder, self.root, self._run = folder, root, run
        self.recipe = f"{folder}/recipe.yaml"
        self.uri = paths.sources_uri(root, "d", "x")

    def put(self, name: str, content: bytes | list[bytes]) -> str:
        data = content if isinstance(content, bytes) else b"".join(line + b"\n" for line in content)
        return store.write(f"{self.folder}/{name}", data).uri

    def look(self, recipe: str, *flags: object, code: int = 0) -> Sources:
        store.write(self.recipe, recipe.encode())
        place = ("--root", self.root, "--dataset", "d", "--output", self.uri)
        self._run("list-sources", "--recipe", self.recipe, *place, *flags, code=code)
        return self.listed if not code else None  # type: ignore[return-value]

    @property
    def listed(self) -> Sources:
        return source_list.from_json(store.read(self.uri), self.uri)

    def split(self, *flags: object, code: int = 0) -> None:
        names = ",".join(file.name for file in self.listed.files)
        self._run("split-corpus", "--sources", self.uri, "--file", names, *flags, code=code)

    def shards(self) -> list[Shard]:
        return recipe_shards.shards(self.listed, parser.parse_recipe(self.listed.text, self.listed.recipe))

    def build(self, recipe: str, *flags: object) -> dict[str, list[dict[str, Any]]]:
        """The content of each shard, in the order of the plan."""
        self.look(recipe)
        self.split(*flags)
        return {
            shard.name: [json.loads(line) for source in shard.sources for line in lines_of(source.uri)]
            for shard in self.shards()
        }

    def report(self, file: int = 0) -> dict[str, Any]:
        made = report.read(self.listed.report_uri(self.listed.files[file]))
        assert made
        return made


def lines_of(uri: str) -> list[bytes]:
    return [line or b"" for _, _, line in line_streams.lines([uri], 2**23)]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in DOCUMENTS if document["meta"]["kind"] == kind]  # type: ignore[index]


@pytest.fixture
def made(tmp_path: Path, run: Run) -> Corpus:
    return Corpus(str(tmp_path / "sources"), str(tmp_path / "root"), run)


@pytest.fixture
def on_s3(s3: str, tmp_path: Path, run: Run) -> Corpus:
    return Corpus(f"{s3}/{tmp_path.name}/sources", f"{s3}/{tmp_path.name}/root", run)


def archive(members: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def parquet(documents: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(documents), out, row_group_size=7)
    return out.getvalue()


JSONL = b"".join(line + b"\n" for line in LINES)
HALVES = {
    "a/one.jsonl": JSONL[: JSONL.index(LINES[15])],
    "a/two.jsonl.gz": gzip.compress(JSONL[JSONL.index(LINES[15]) :]),
}
WITH_OTHERS = {"README": b"no document", **HALVES, "b/other.jsonl": LINES[0] + b"\n"}
FORMATS: dict[str, bytes] = {
    "x.jsonl": JSONL,
    "x.jsonl.gz": gzip.compress(JSONL),
    "x.jsonl.zst": zstandard.compress(JSONL[:500]) + zstandard.compress(JSONL[500:]),
    "x.tar": archive(WITH_OTHERS),
    "x.tar.gz": archive(WITH_OTHERS, "w:gz"),
    "x.tgz": archive(WITH_OTHERS, "w:gz"),
    "x.tar.zst": zstandard.compress(archive(WITH_OTHERS)),
}


def recipe_of(name: str, more: str = "") -> str:
    members = '    members: "a/*"\n' if ".t" in name else ""
    return RECIPE.replace("FILE", name) + members + more


@pytest.mark.parametrize("name", [*FORMATS, "x.parquet"])
def test_every_format_gives_the_same_documents(name: str, made: Corpus, on_s3: Corpus) -> None:
    data = parquet(DOCUMENTS) if name == "x.parquet" else FORMATS[name]
    expected = {"x_code": of_kind("c"), "x_docs": of_kind("d")}
    for where in (made, on_s3):
        where.put(name, data)
        assert where.build(recipe_of(name)) == expected
        assert where.report()["counts"] == {"documents": 20, "parts": 2, "left_out": 10, "bad_records": 0}
        assert where.report()["details"]["left_out"] == {"meta.kind: x": 10}


def test_lines_stay_as_they_are_and_parts_are_the_same_bytes_every_time(made: Corpus, run: Run, tmp_path: Path) -> None:
    odd = [line.replace(b'"id": ', b' "id" :  1.0e1, "again": ') for line in LINES]
    made.put("x.jsonl", odd)
    made.build(recipe_of("x.jsonl"))
    first = made.shards()
    assert [line for shard in first for line in lines_of(shard.sources[0].uri)] == [*odd[1::3], *odd[0::3]]
    other = Corpus(made.folder, str(tmp_path / "other"), run)
    # With few open parts the file is read once for each shard, with the same result.
    other.build(recipe_of("x.jsonl", "    max_documents: 9\n"), "--memory-budget", "1MiB")
    assert other.report()["details"] | {"parts": 0} == {
        "parts": 0,
        "left_out": {"meta.kind: x": 10, "over max_documents of train docs": 1, "over max_documents of train code": 1},
        "passes": 2,
    }
    other.build(recipe_of("x.jsonl"), "--memory-budget", "1MiB")
    assert other.report()["details"]["passes"] == 2
    assert [s.sources[0].fingerprint for s in other.shards()] == [s.sources[0].fingerprint for s in first]
    assert all(store.at(s.sources[0].uri).fingerprint(s.sources[0].uri) == s.sources[0].fingerprint for s in first)


def test_finished_files_are_not_split_again_and_changed_files_are(made: Corpus) -> None:
    made.put("a.jsonl", LINES)
    made.put("b.jsonl", LINES[:9])
    recipe = recipe_of("[a.jsonl, b.jsonl]")
    made.build(recipe)
    before = {file.name: store.read(made.listed.report_uri(file)) for file in made.listed.files}
    shards = made.shards()
    made.put("b.jsonl", LINES[:12])
    made.build("# A remark.\n" + recipe)
    after = {file.name: store.read(made.listed.report_uri(file)) for file in made.listed.files}
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    assert [s for s in made.shards() if s.name.startswith("a_")] == [s for s in shards if s.name.startswith("a_")]
    # The same content elsewhere is another file, but of the same parts.
    assert [s.name for s in made.shards() if s not in shards] == ["b_code", "b_docs"]


def test_a_damaged_part_is_written_again(made: Corpus) -> None:
    made.put("x.jsonl", LINES)
    built = made.build(recipe_of("x.jsonl"))
    part = Path(made.shards()[0].sources[0].uri)
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.write_bytes(data)
    assert made.build(recipe_of("x.jsonl")) == built


def test_shards_are_cut_by_documents_and_by_bytes(made: Corpus) -> None:
    made.put("x.jsonl", LINES)
    built = made.build(recipe_of("x.jsonl", '    cut: {documents: 4}\n    shard: "{number:03}-{category}"\n'))
    assert {name: len(documents) for name, documents in built.items()} == {
        "000-code": 4, "000-docs": 4, "001-code": 4, "001-docs": 4, "002-code": 2, "002-docs": 2,
    }  # fmt: skip
    assert built["001-docs"] == of_kind("d")[4:8]
    size = len(LINES[0]) + len(LINES[3]) + 2
    built = made.build(recipe_of("x.jsonl", f'    cut: {{bytes: {size}}}\n    shard: "{{category}}_{{number}}"\n'))
    assert all(
        sum(len(json.dumps(d, ensure_ascii=False).encode()) + 1 for d in held) <= size for held in built.values()
    )
    assert [d for name, held in built.items() if "docs" in name for d in held] == of_kind("d")


def test_realnews_is_split_by_its_field_and_validation_ends_after_the_first(made: Corpus) -> None:
    sides = ["val" if number % 4 == 0 else "train" for number in range(30)]
    lines = [json.dumps({"text": str(n), "split": side}).encode() for n, side in enumerate(sides)]
    made.put("realnews.tar.gz", archive({"realnews/realnews.jsonl": b"\n".join(lines)}, "w:gz"))
    built = made.build("""\
categories: [realnews]
sources:
  - files: realnews.tar.gz
    members: realnews/realnews.jsonl
    category: realnews
    split: {field: split, values: {train: train, val: val}}
    cut: {documents: 10}
    max_documents: {val: 5}
    shard: {train: "{number:02}_{category}", val: "val_{category}"}
""")
    assert list(built) == ["00_realnews", "01_realnews", "02_realnews", "val_realnews"]
    assert [int(d["text"]) for d in built["val_realnews"]] == [0, 4, 8, 12, 16]
    assert [len(built[name]) for name in built] == [10, 10, 2, 5]
    assert {shard.name: shard.split for shard in made.shards()}["val_realnews"] == "val"
    assert made.report()["details"]["left_out"] == {"over max_documents of val realnews": 3}


def test_a_hash_splits_alike_wherever_a_document_lies(made: Corpus) -> None:
    made.put("x.jsonl", LINES)
    split = recipe_of("x.jsonl", "    split: {val: 0.3, id: id, seed: 1}\n")
    first = made.build(split)
    assert {name.split("_")[0] for name in first} == {"x", "val"}
    validation = {d["id"] for name, held in first.items() if name.startswith("val") for d in held}
    made.put("x.jsonl", LINES[::-1][:20])
    second = made.build(split)
    assert {d["id"] for n, held in second.items() if n.startswith("val") for d in held} == validation & set(
        range(10, 30)
    )


def test_a_path_decides_the_category_and_files_join_in_one_shard(made: Corpus) -> None:
    for number, name in enumerate(("d/1.jsonl", "d/0.jsonl", "c/0.jsonl")):
        made.put(name, [LINES[number]])
    built = made.build("""\
categories: [docs, code]
sources:
  - files: "{d,c}/*.jsonl"
    category: {path: {"d/**": docs, "c/*": code}}
    shard: "all_{category}"
""")
    assert {name: [d["id"] for d in held] for name, held in built.items()} == {"all_code": [2], "all_docs": [1, 0]}


def test_another_field_holds_the_text(made: Corpus) -> None:
    made.put("x.jsonl", [b'{"body": "one", "kind": 1}', b'{"text": "two"}'])
    built = made.build("categories: [a]\nsources:\n  - {files: x.jsonl, category: a, text: body}\n")
    assert built == {"x_a": [{"kind": 1, "text": "one"}]}
    (bad,) = lines_of(paths.bad_lines_uri(made.listed.parts_folder(made.listed.files[0])))
    assert json.loads(bad)["reason"] == "no key 'body'"


def test_bad_lines_are_set_aside_with_the_file_and_line_where_they_stand(made: Corpus) -> None:
    content = [LINES[0], b"{broken", b"", LINES[1], b'{"text": 1}', b"\xff", LINES[3], LINES[4], LINES[6]]
    made.put("x.tar", archive({"a/one.jsonl": b"\n".join(content), "b": b""}))
    assert {name: len(held) for name, held in made.build(recipe_of("x.tar")).items()} == {"x_code": 2, "x_docs": 3}
    assert made.report()["counts"]["bad_records"] == 3
    bad = [json.loads(line) for line in lines_of(paths.bad_lines_uri(made.listed.parts_folder(made.listed.files[0])))]
    assert {entry["source"] for entry in bad} == {f"{made.folder}/x.tar/a/one.jsonl"}
    assert [entry["line"] for entry in bad] == [2, 5, 6]
    assert [entry["reason"].split(" ")[0] for entry in bad] == ["bad", "'text'", "invalid"]


def test_bad_lines_stop_the_file_where_they_are_to(made: Corpus, caplog: pytest.LogCaptureFixture, hear: None) -> None:
    made.put("x.jsonl", [LINES[0], b"{broken", b"", LINES[1]])
    made.look(recipe_of("x.jsonl"), "--on-bad-record", "fail")
    made.split(code=65)
    assert f"{made.folder}/x.jsonl, line 2: bad JSON" in caplog.text
    made.look(recipe_of("x.jsonl"), "--max-bad-share", "0.3")
    made.split(code=65)
    assert "1 of 3 records (33.3%) is bad, more than the limit of 30.0%" in caplog.text
    assert not store.exists(made.listed.report_uri(made.listed.files[0]))


@pytest.fixture
def hear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pytest capture the log of the command line."""
    from retro_ops import cli

    monkeypatch.setattr(cli, "configure_logging", lambda: logging.getLogger("retro_ops").setLevel(logging.INFO))
    monkeypatch.setattr(logging.getLogger("retro_ops"), "propagate", True)


TWO = """\
categories: [docs, code]
sources:
  - files: a/*.jsonl
    category: docs
  - files: b/{0,1}.jsonl
    category: code
"""

REFUSED: list[tuple[str, str, int, str]] = [
    (
        "a/*",
        "c/*",
        3,
        "no file at FOLDER/c/*.jsonl; correct 'files', set the source folder, or add 'optional: true'",
    ),
    ("{0,1}", "{0,1,2}", 5, "no file at FOLDER/b/2.jsonl"),
    ("b/{0,1}.jsonl", '"{a/0,b/1}.jsonl"', 5, "FOLDER/a/0.jsonl is already named in line 3"),
    ("category: code", 'category: code\n    shard: "{file}_docs"', 7, "shard '0_docs' would be written twice"),
    (
        "category: code",
        'category: code\n    split: val\n    shard: "0_docs"',
        8,
        "shard '0_docs' would be written twice",
    ),
    (
        "category: code",
        'category: docs\n    cut: {documents: 1}\n    shard: "{file}_{number}_docs"',
        0,
        "",
    ),
    (
        "category: code",
        'category: docs\n    cut: {documents: 1}\n    shard: "{number}_docs"',
        8,
        "shard '…_docs' would be written twice",
    ),
    (
        "b/{0,1}.jsonl\n    category: code",
        'b/1.jsonl\n    category: docs\n    cut: {documents: 1}\n    shard: "{number}_docs"',
        8,
        "shard '0_docs' would be written twice: by train docs of FOLDER/a/0.jsonl (line 3)",
    ),
    ("category: code", 'category: {path: {"b/0*": code}}', 5, "no pattern of 'path' matches FOLDER/b/1.jsonl"),
    (
        "category: code",
        'category: {field: k, values: {x: docs, y: code}}\n    shard: "{file}"',
        7,
        "shard '0' would be",
    ),
    ("category: docs", "category: dogs", 4, "unknown category 'dogs'; did you mean 'docs'?"),
    ("files: a/*.jsonl", "files: a/*.jsonl\n    split: {val: 0.1}\n    shard: x_{category}", 5, "'x_docs' would be"),
    ("a/*.jsonl", "odd", 3, "shard name '-odd_docs' cannot be a folder name"),
]


@pytest.mark.parametrize(("part", "instead", "line", "said"), REFUSED, ids=[w[3][:40] for w in REFUSED])
def test_a_recipe_is_refused_before_anything_runs(
    made: Corpus, part: str, instead: str, line: int, said: str, caplog: pytest.LogCaptureFixture, hear: None
) -> None:
    for name in ("a/0", "b/0", "b/1", "odd/-odd"):
        made.put(f"{name}.jsonl", LINES[:1])
    assert part in TWO
    if not line:  # All is well.
        made.look(TWO.replace(part, instead))
        return
    made.look(TWO.replace(part, instead), code=65)
    assert f"{made.recipe}:{line}: " in caplog.text
    assert said.replace("FOLDER", made.folder) in caplog.text
    assert not store.at(made.root).list(made.root)


def test_missing_files_are_logged_and_the_rest_is_built(
    made: Corpus, caplog: pytest.LogCaptureFixture, hear: None
) -> None:
    made.put("b/0.jsonl", LINES[:2])
    optional = TWO.replace("category: docs", "category: docs\n    optional: true")
    optional = optional.replace("category: code", f"category: {CATEGORY}\n    optional: true")
    built = made.build(optional.replace("[docs, code]", "[docs, code, news]").replace("d: docs", "q: docs"))
    assert list(built) == ["0_code"]
    assert f"{made.recipe}:3: {made.folder}/a/*.jsonl does not exist; the rest is built" in caplog.text
    assert f"{made.recipe}:6: {made.folder}/b/1.jsonl does not exist" in caplog.text
    assert "category 'news' is absent: none of its files exists" in caplog.text
    assert "category 'docs' is absent: no document belongs to it" in caplog.text
    assert "1 left out: 1 'meta.kind: d'" in caplog.text


def test_nothing_at_all_is_no_dataset(made: Corpus, caplog: pytest.LogCaptureFixture, hear: None) -> None:
    optional = "categories: [docs]\nsources:\n  - {files: a.jsonl, category: docs, optional: true}\n"
    made.look(optional, code=65)
    assert f"none of its files exists below {made.folder}" in caplog.text
    made.put("a.jsonl", LINES[:1])
    made.look(optional.replace("docs, opt", "docs, split: val, opt"))
    made.split()
    with pytest.raises(BadInputError, match="no training shard is indexed"):
        made.shards()


def test_which_shards_are_indexed_and_which_are_queried(made: Corpus) -> None:
    for number in range(4):
        made.put(f"{number:02}.jsonl", LINES[:2])
    chosen = recipe_of('"{00..03}.jsonl"', 'indexed: "*_docs"\nqueried: ["{00..03}_code", "0[01]_docs", 02_docs]\n')
    made.build(chosen)
    assert {shard.name: (shard.indexed, shard.queried) for shard in made.shards()} == {
        "00_code": (False, True), "00_docs": (True, True), "01_code": (False, True), "01_docs": (True, True),
        "02_code": (False, True), "02_docs": (True, True), "03_code": (False, True), "03_docs": (True, False),
    }  # fmt: skip
    made.look(chosen.replace("02_docs", "02_dogs").replace("*_docs", "*_d?cs"))
    with pytest.raises(BadInputError, match=r"recipe.yaml:6: no shard matches '02_dogs' in 'queried'"):
        made.shards()
    made.look(chosen.replace("{00..03}_code", "{00..02}_code"))
    with pytest.raises(BadInputError, match=r"recipe.yaml: 1 shard is neither indexed nor queried: 03_code"):
        made.shards()


def test_where_relative_paths_start(made: Corpus, tmp_path: Path) -> None:
    elsewhere = Corpus(str(tmp_path / "elsewhere"), made.root, made._run)
    elsewhere.put("x.jsonl", LINES)
    listed = made.look(recipe_of("x.jsonl"), "--source-folder", elsewhere.folder)
    assert [(file.name, file.uri) for file in listed.files] == [("x", f"{elsewhere.folder}/x.jsonl")]
    assert listed.given_folder == elsewhere.folder
    made.put("x.jsonl", LINES[:1])
    listed = made.look(recipe_of(f"[x.jsonl, {elsewhere.folder}/x.jsonl]", '    shard: "{category}"\n'))
    assert [file.uri for file in listed.files] == [f"{made.folder}/x.jsonl", f"{elsewhere.folder}/x.jsonl"]
    assert listed.given_folder is None
    assert len({file.name for file in listed.files}) == 2


def test_the_recipe_of_the_package_is_found_by_its_name(run: Run, tmp_path: Path) -> None:
    place = ("--root", tmp_path / "root", "--dataset", "d", "--source-folder", tmp_path)
    run("list-sources", "--recipe", "massive_open_text", *place, code=65)
    run("list-sources", "--recipe", "massive_closed_text", *place, code=65)
    (tmp_path / "Pile").mkdir()
    (tmp_path / "Pile/val.jsonl.zst").write_bytes(zstandard.compress(JSONL))
    run("list-sources", "--recipe", "massive_open_text", *place)  # Only looked at.
    assert not (tmp_path / "root").exists()


def test_the_demos_recipe_gives_the_shards_of_its_patterns(made: Corpus) -> None:
    from demo.make_corpus import write

    files = write(Path(made.folder))
    built = made.build(Path("demo/recipe.yaml").read_text())
    assert list(built) == [path.name.partition(".")[0] for path in files]
    for path, documents in zip(files, built.values(), strict=True):
        assert documents == [json.loads(line) for line in lines_of(str(path))]


REFRESHED = """\
categories: [docs]
sources:
  - {files: "{0,1}.jsonl", category: docs}
  - {files: val.jsonl, category: docs, split: val}
"""


def test_a_refresh_uses_the_recipe_and_builds_changed_shards(
    made: Corpus, run: Run, texts: list[str], small_model: str, tmp_path: Path
) -> None:
    def documents(start: int) -> list[bytes]:
        return [json.dumps({"text": text[:900]}).encode() for text in texts[start : start + 3]]

    def refresh(name: str) -> Done:
        """It finds the recipe in the published version."""
        return whole_run(made.root, "d", name, "--refresh")

    for number, name in enumerate(("0", "1", "val")):
        bad = [b"{broken", b'{"text": 1}'] if name == "0" else []
        made.put(f"{name}.jsonl", documents(3 + 3 * number) + bad)
    store.write(made.recipe, REFRESHED.encode())
    flags = ("--tokenizer", small_model, "--model", small_model, *EXACT, "--max-bad-share", "0.75")
    whole_run(made.root, "d", "first", "--recipe", made.recipe, *flags)
    _check_that_bad_records_are_counted(made)
    _check_that_files_are_read_with_the_published_limits(made, run, tmp_path)
    assert refresh("idle").changes["nothing"]
    made.put("1.jsonl", documents(20))
    done = refresh("second")
    assert done.changes["changed"] == ["1_docs"]
    assert done.calls["embed-chunks"] == 1
    assert done.plan.recipe == made.recipe
    scratch = whole_run(f"{made.root}-scratch", "d", "x", "--recipe", made.recipe, *flags)
    assert set(compare(done, scratch)[0].values()) == {1.0}
    # Without its list a refresh says what is missing.
    refused = ("--root", made.root, "--dataset", "d", "--output", f"{tmp_path}/plan.json", "--refresh")
    run("plan", *refused, code=65)
    _prune(made, run)
    assert refresh("after").changes["nothing"]


def _check_that_files_are_read_with_the_published_limits(made: Corpus, run: Run, tmp_path: Path) -> None:
    """Unless they are given, or return to their default."""
    listed = tmp_path / "sources.json"
    place = ("--root", made.root, "--dataset", "d", "--refresh", "--output", listed)
    default = Parameters().max_bad_share
    for more, share in (((), 0.75), (("--max-bad-share", "0.25"), 0.25), (("--unset", "max_bad_share"), default)):
        run("list-sources", *place, *more)
        assert json.loads(listed.read_text())["max_bad_share"] == share


def _check_that_bad_records_are_counted(made: Corpus) -> None:
    """Those that splitting set aside, which belong to no shard, in everything that describes the version."""
    series = history.read(made.root, "d")
    plan = read_plan(series.plan_uri())
    first = f"{made.folder}/0.jsonl, line 4: bad JSON"
    assert series.entry()["counts"]["bad_records"] == 2
    for of in (history.manifest(series.folder()), json.loads(store.read(paths.card_uri(plan, "json")))):
        said = of["split_corpus"].pop("first_bad_record")
        assert said.startswith(first)
        assert of["split_corpus"] == {"files": 3, "bad_records": 2, "left_out": 0}
    sources = json.loads(store.read(paths.card_uri(plan, "json")))["provenance"]["sources"]
    assert [of["split_from"] for of in sources] == [f"{made.folder}/{name}.jsonl" for name in ("0", "1", "val")]
    page = store.read(paths.card_uri(plan, "html")).decode()
    assert "bad records were set aside: 2; documents left out: 0" in page
    assert f"First bad record: {first}" in page


def _prune(made: Corpus, run: Run) -> None:
    """Parts go with the last version that uses them."""

    def folders() -> set[str]:
        return {uri.rpartition("/")[0] for uri in store.at(made.root).list(f"{made.root}/d/corpus")}

    before = folders()
    for path in Path(made.root).rglob("*"):
        os.utime(path, (time.time() - 7 * 86_400,) * 2)
    run("prune", "--root", made.root, "--dataset", "d", "--keep", 1, "--yes")
    assert len(before) == 4
    assert len(before - folders()) == 1
    series = history.read(made.root, "d")
    current = read_plan(series.plan_uri())
    assert {source.uri.rpartition("/")[0] for shard in current.shards for source in shard.sources} == folders()


def test_a_kill_leaves_nothing_that_counts_and_the_next_try_writes_the_same(
    made: Corpus, run: Run, tmp_path: Path
) -> None:
    made.put("x.jsonl", LINES * 5000)
    # Shards that are full are there before the file is through.
    cut = recipe_of("x.jsonl", '    cut: {documents: 1000}\n    shard: "{number:02}_{category}"\n')
    made.look(cut)
    folder = Path(made.listed.parts_folder(made.listed.files[0]))
    command = [sys.executable, "-m", "retro_ops.cli", "split-corpus", "--sources", made.uri, "--file", "x"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("*.zst")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not store.exists(made.listed.report_uri(made.listed.files[0]))
    made.split()
    assert len(made.shards()) == 100
    assert not list(folder.glob(".*")), "what was not finished is swept away"
    other = Corpus(made.folder, str(tmp_path / "other"), run)
    other.build(cut)
    assert [s.sources[0].fingerprint for s in other.shards()] == [s.sources[0].fingerprint for s in made.shards()]


DAMAGED: dict[str, tuple[bytes, str]] = {
    "x.jsonl.zst": (FORMATS["x.jsonl.zst"][:-9], "cannot be decompressed"),
    "x.tar.gz": (FORMATS["x.tar.gz"][:-40], "x.tar.gz cannot be read"),
    "x.tar": (FORMATS["x.tar"][:3000], "x.tar cannot be read"),
    "x.tgz": (archive({"README": b"", "b/one.jsonl": JSONL}, "w:gz"), "the archive holds README, b/one.jsonl"),
    "x.parquet": (b"PAR1 is not enough", "x.parquet cannot be read as a Parquet file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name: str, made: Corpus, caplog: pytest.LogCaptureFixture, hear: None) -> None:
    data, said = DAMAGED[name]
    made.put(name, data)
    made.look(recipe_of(name))
    made.split(code=65)
    assert said in caplog.text
    # Nothing counts as done, and the plan says what is missing.
    with pytest.raises(BadInputError, match="is not split yet"):
        made.shards()


def test_without_pyarrow_the_error_for_a_table_names_the_package_to_install(
    made: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retro_ops.corpus.archives import lines

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"retro-ops\[parquet\]"):
        list(lines(f"{made.folder}/x.parquet", None, 2**20, "text"))


def test_a_file_that_changed_since_it_was_listed_is_refused(
    made: Corpus, caplog: pytest.LogCaptureFixture, hear: None
) -> None:
    made.put("x.jsonl", LINES)
    made.look(recipe_of("x.jsonl"))
    made.put("x.jsonl", LINES[:3])
    made.split(code=65)
    assert f"{made.folder}/x.jsonl has changed since the sources were listed" in caplog.text


def test_two_files_that_wrote_one_shard_are_refused_by_the_plan_too() -> None:
    def part(file: str, rule: int) -> recipe_shards.RecipePart:
        source = Source(file, 1, file)
        return recipe_shards.RecipePart(
            "0_docs", "train", "docs", 1, source, source_list.SourceFile(file, file, 1, file, rule, "d")
        )

    recipe_shards.check_one_writer([part("a", 0), part("b", 0)])  # Of one source, on purpose.
    with pytest.raises(
        BadInputError, match="'0_docs' was written twice: with train docs of a, and with train docs of b"
    ):
        recipe_shards.check_one_writer([part("a", 0), part("b", 1)])
