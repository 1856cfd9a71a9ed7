"""MassiveOpenText from a small Pile and RealNews, and each mistake of the original's recipe, which ours has not.

What the original's instructions say is quoted with each test.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Done, whole_run
from samples import Run

from demo.massive_open_text_tree import OTHER_SETS, PILE, write
from retro_ops.corpus import line_streams
from retro_ops.corpus.routing import LeftOut
from retro_ops.execution import report
from retro_ops.index.sampling import sample_rows
from retro_ops.plan import paths
from retro_ops.plan.specs import dataset_spec_from_json, index_spec_from_json
from retro_ops.storage import store

CATEGORIES = ("wikipedia_en", "github", "pile_cc", "books3", "realnews")
SHARDS, DOCUMENTS = 3, 4
QUERIED = 'queried: ["{00..01}_*", "val_*"]\n'
TRAIN = [f"{number:02}_{category}" for number in range(SHARDS) for category in CATEGORIES]
VALIDATION = [f"val_{category}" for category in CATEGORIES]
RETRIEVER = "retriever_sentence_transformer"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    write(folder, DOCUMENTS, SHARDS)
    return folder


@pytest.fixture(scope="module")
def done(tree: Path, tmp_path_factory: pytest.TempPathFactory, small_model: str) -> Done:
    root = str(tmp_path_factory.mktemp("root"))
    flags = ("--tokenizer", small_model, "--model", small_model, "--index-type", "IVF4,PQ8x4")
    recipe = ("--recipe", tree / "massive_open_text.yaml")
    return whole_run(root, "MassiveOpenText", "x", *recipe, *flags)


@pytest.fixture(scope="module")
def exported(done: Done, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "MassiveOpenText"
    run("export", "--root", done.plan.root, "--dataset", done.plan.dataset, "--to", folder)
    return folder


def documents(uri: str) -> Iterator[dict[str, Any]]:
    for _, _, line in line_streams.lines([uri], 2**23):
        assert line
        yield json.loads(line)


def names_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_exported_tree_has_every_file_name_of_the_original(exported: Path) -> None:
    shards = TRAIN + VALIDATION
    expected = {
        *(f"chunk_shards/{name}.{kind}.npy" for name in shards for kind in ("chunks", "seq2chunk", "chunk2seq")),
        *(f"{RETRIEVER}/embeddings/{name}.embeddings.npy" for name in shards),
        *(f"{RETRIEVER}/neighbours/{name}.neighbours.npy" for name in shards),
        *(f"{RETRIEVER}/{name}" for name in ("IVF4,PQ8x4.index", "train.index", "val.index", "train.index.spec.json")),
    }
    assert expected <= names_of(exported)


def test_every_document_went_where_its_set_says(done: Done, tree: Path) -> None:
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for path in sorted((tree / "Pile").rglob("*.zst")):
        for document in documents(str(path)):
            category = {name: key for key, name in PILE.items()}.get(document["meta"]["pile_set_name"])
            if category:
                by_category[category].append(document["text"])
    plan = done.plan
    for category in (*PILE, "realnews"):
        held = [
            document
            for shard in plan.shards
            if shard.name.partition("_")[2] == category
            for source in shard.sources
            for document in documents(source.uri)
        ]
        assert len(held) == DOCUMENTS * (SHARDS + 1)
        if category != "realnews":
            assert sorted(document["text"] for document in held) == sorted(by_category[category])
    left_out = report.require(paths.report_in(parent_of(done, "00_github"), "split-corpus"), "x")["details"]["left_out"]
    assert left_out == {LeftOut(f"meta.pile_set_name: {name}").reason: 1 for name in OTHER_SETS[:DOCUMENTS]}


def parent_of(done: Done, shard: str) -> str:
    return done.plan.shard(shard).sources[0].uri.rpartition("/")[0]


# What stops the original.


def test_uncompressed_files_are_not_required(tree: Path, done: Done) -> None:
    """'Download the uncompressed Pile data file tree': there is none; the files are 00.jsonl.zst and so on."""
    assert {path.suffix for path in (tree / "Pile").rglob("*") if path.is_file()} == {".zst"}
    assert done.calls["split-corpus"] == SHARDS + 2


def test_one_run_indexes_both_splits_without_a_step_by_hand(done: Done) -> None:
    """Steps 6 and 7 name a file where a command should stand: 'MassiveOpenText/…/train.index'."""
    plan = done.plan
    assert all(store.exists(paths.index_uri(plan, split)) for split in plan.splits())
    assert done.calls["merge-indexes"] == 1


def test_a_whole_dataset_needs_no_step_that_only_its_author_has(done: Done, exported: Path) -> None:
    """The steps are targets of a Makefile, and end before any dataset spec is written."""
    for split in ("train", "val"):
        uri = str(exported / f"{split}.data.spec.json")
        spec = dataset_spec_from_json(store.read(uri), uri)
        files = [
            getattr(shard, kind) for shard in spec.shards for kind in ("chunks", "seq2chunk", "chunk2seq", "neighbours")
        ]
        assert all(Path(path).is_file() for path in (*files, spec.faiss_index, spec.index_spec))


def test_every_shard_that_is_validated_on_was_made(done: Done) -> None:
    """Embeddings of val_books3, val_github and val_pile_cc are made of chunks that only a side effect of
    'val_wikipedia_en' makes, as those of 00 to 29 are of '00_wikipedia_en'; here each shard is named."""
    assert [shard.name for shard in done.plan.shards] == sorted(TRAIN) + sorted(VALIDATION)


# What lets it run and go wrong.


def test_specs_lead_to_what_was_written(exported: Path, tmp_path: Path) -> None:
    """Paths of the original's specs resolve to folders that no step writes; ours may be moved, too."""
    moved = exported.rename(tmp_path / "elsewhere")
    try:
        for split in ("train", "val"):
            uri = str(moved / f"{split}.data.spec.json")
            index = dataset_spec_from_json(store.read(uri), uri).index_spec
            for shard in index_spec_from_json(store.read(index), index):
                rows = {len(np.load(path, mmap_mode="r")) for path in (shard.chunks, shard.chunk2seq, shard.embeddings)}
                assert len(rows) == 1
    finally:
        moved.rename(exported)


def test_validation_uses_the_spec_of_its_own_index(exported: Path) -> None:
    """Validation searches 'val.index' with 'train.index.spec.json', which does not list the validation chunks."""
    uri = str(exported / "val.data.spec.json")
    spec = dataset_spec_from_json(store.read(uri), uri)
    assert spec.index_spec == str(exported / RETRIEVER / "val.index.spec.json")
    index = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
    names = [Path(shard.chunks).name.removesuffix(".chunks.npy") for shard in index]
    assert names == sorted(TRAIN) + sorted(VALIDATION)
    total = sum(len(np.load(shard.chunks, mmap_mode="r")) for shard in index)
    neighbours = np.concatenate([np.load(shard.neighbours) for shard in spec.shards])
    train = total - len(neighbours)
    assert neighbours.max() < total
    assert (neighbours >= train).any()  # A spec of training shards alone would lead past its end.


def test_all_that_is_indexed_is_queried_unless_the_recipe_says_otherwise(exported: Path) -> None:
    """In the original the training spec covers shards 00 to 08, 45 of 150, while the index silently holds all."""
    uri = str(exported / "train.data.spec.json")
    spec = dataset_spec_from_json(store.read(uri), uri)
    index = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
    assert [shard.chunks for shard in spec.shards] == [shard.chunks for shard in index]


def test_the_originals_choice_of_queried_shards_is_a_line_of_the_recipe(
    tree: Path, tmp_path: Path, run: Run, small_model: str
) -> None:
    """In the original 45 of 150 shards are queried. Indexed and queried shards are two explicit choices here."""
    recipe = tree / "queried.yaml"
    recipe.write_text((tree / "massive_open_text.yaml").read_text() + QUERIED)
    plan = _planned(recipe, tree, tmp_path, run, small_model)
    assert len(plan.shards) == (SHARDS + 1) * len(CATEGORIES)
    assert all(shard.indexed for shard in plan.shards)
    assert {shard.name for shard in plan.shards if not shard.queried} == {f"02_{category}" for category in CATEGORIES}


def _planned(recipe: Path, tree: Path, root: Path, run: Run, model: str) -> Any:
    done = Done(paths.plan_uri(str(root), "d", "x"))
    uri = paths.sources_uri(str(root), "d", "x")
    place = ("--root", root, "--dataset", "d")
    run("list-sources", "--recipe", recipe, "--source-folder", tree, *place, "--output", uri)
    names = [file["name"] for file in json.loads(store.read(uri))["files"]]
    run("split-corpus", "--sources", uri, "--file", ",".join(names))
    run("plan", *place, "--sources", uri, "--output", done.plan_uri, "--tokenizer", model, "--model", model)
    return done.plan


def test_a_part_that_is_no_longer_available_may_be_missing(
    tree: Path, tmp_path: Path, run: Run, small_model: str
) -> None:
    """The original names a server for the Pile that is gone, and fails if a part is missing."""
    some = tmp_path / "some"
    (some / "Pile/train").mkdir(parents=True)
    for name in ("Pile/train/01.jsonl.zst", "Pile/val.jsonl.zst"):
        (some / name).write_bytes((tree / name).read_bytes())
    plan = _planned(tree / "massive_open_text.yaml", some, tmp_path / "root", run, small_model)
    names = [f"{number}_{category}" for number in ("01", "val") for category in sorted(PILE)]
    assert [shard.name for shard in plan.shards] == names


def test_training_vectors_come_from_all_shards(done: Done) -> None:
    """'--max-training-vectors' takes the first shards until it has enough: one category alone."""
    plan = done.plan
    counts = [len(np.load(paths.embeddings_uri(plan, shard.name), mmap_mode="r")) for shard in plan.indexed("train")]
    drawn = list(sample_rows(np.array(counts), sum(counts) // 2, plan.parameters.seed))
    assert len(drawn) == len(TRAIN)
    assert all(len(rows) for rows in drawn)


def test_the_tree_is_the_same_every_time(tree: Path, tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS, SHARDS)
    for name in names_of(tree) - {"queried.yaml"}:
        assert (tmp_path / name).read_bytes() == (tree / name).read_bytes(), name
