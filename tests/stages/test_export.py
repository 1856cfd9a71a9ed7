"""Export of a dataset with many categories: every name of the original's MassiveOpenText, and specs that load."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from books import arrays_of, build, make_corpus, plan_of
from samples import Run, build_in_groups, write_corpus

from retro_ops.plan import paths
from retro_ops.plan.specs import DatasetSpec, IndexShard, dataset_spec_from_json, index_spec_from_json
from retro_ops.storage import store

CATEGORIES = ("wikipedia_en", "github", "pile_cc", "books3", "realnews")
TRAIN = [f"{number:02}_{category}" for number in range(2) for category in sorted(CATEGORIES)]
VALIDATION = [f"val_{category}" for category in sorted(CATEGORIES)]
QUERIED = [name for name in TRAIN if name.startswith("00_")]
"""The original queries shards 00 to 08 of each category, while the index holds 00 to 29."""

RETRIEVER = "retriever_sentence_transformer"
NAMES = {
    *("manifest.json", "card.html", "card.json", "train.data.spec.json", "val.data.spec.json"),
    *(f"chunk_shards/{n}.{kind}.npy" for n in TRAIN + VALIDATION for kind in ("chunks", "seq2chunk", "chunk2seq")),
    *(
        f"chunk_shards/{n}.chunks.{kind}"
        for n in TRAIN + VALIDATION
        for kind in ("documents.jsonl.zst", "document_ids.npy")
    ),
    *("export.json", "tokenizer.json"),
    *(f"{RETRIEVER}/embeddings/{name}.embeddings.npy" for name in TRAIN + VALIDATION),
    *(f"{RETRIEVER}/neighbours/{n}.{k}.npy" for n in QUERIED + VALIDATION for k in ("neighbours", "distances")),
    *(f"{RETRIEVER}/{name}" for name in ("IVF4,PQ8x4.index", "train.index", "val.index")),
    *(f"{RETRIEVER}/{name}" for name in ("train.index.spec.json", "val.index.spec.json")),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Run, texts: list[str], small_model: str) -> Path:
    folder = tmp_path_factory.mktemp("massive")
    for number, name in enumerate(TRAIN + VALIDATION):
        split = "val" if name in VALIDATION else "train"
        write_corpus(folder / f"corpus/{split}/{name}.jsonl", [text[:900] for text in texts[3 + number : 5 + number]])
    uri = paths.plan_uri(str(folder / "root"), "MassiveOpenText", "x")
    run(
        *("plan", "--root", folder / "root", "--dataset", "MassiveOpenText", "--output", uri),
        *("--corpus", folder / "corpus/train", "--validation-corpus", folder / "corpus/val"),
        *("--tokenizer", small_model, "--model", small_model, "--index-type", "IVF4,PQ8x4"),
        *("--queried", "00_*,val_*", "--min-recall", "0"),
    )
    build_in_groups(run, uri, 15)
    for stage in ("describe", "validate", "publish"):
        run(stage, "--plan", uri)
    run("export", "--root", folder / "root", "--dataset", "MassiveOpenText", "--to", folder / "MassiveOpenText")
    return folder / "MassiveOpenText"


def test_the_tree_has_every_name_of_the_original_and_no_other(exported: Path) -> None:
    assert {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()} == NAMES


def load(tree: Path, split: str) -> tuple[DatasetSpec, tuple[IndexShard, ...]]:
    uri = str(tree / f"{split}.data.spec.json")
    spec = dataset_spec_from_json(Path(uri).read_text(), uri)
    return spec, index_spec_from_json(Path(spec.index_spec).read_text(), spec.index_spec)


@pytest.mark.parametrize(
    ("split", "indexed", "queried"), [("train", TRAIN, QUERIED), ("val", TRAIN + VALIDATION, VALIDATION)]
)
def test_specs_load_from_where_they_lie(
    exported: Path, tmp_path: Path, split: str, indexed: list[str], queried: list[str]
) -> None:
    moved = tmp_path / "elsewhere"
    exported.rename(moved)  # All paths are relative.
    try:
        spec, shards = load(moved, split)
        assert [Path(shard.chunks).name for shard in shards] == [f"{name}.chunks.npy" for name in indexed]
        assert [Path(shard.neighbours).name for shard in spec.shards] == [f"{n}.neighbours.npy" for n in queried]
        total = 0
        for shard in shards:
            chunks, embeddings = (np.load(of, mmap_mode="r") for of in (shard.chunks, shard.embeddings))
            assert len(chunks) == len(embeddings) == len(np.load(shard.chunk2seq))
            total += len(chunks)
        assert faiss.read_index(spec.faiss_index).ntotal == total
        for query in spec.shards:
            neighbours = np.load(query.neighbours, mmap_mode="r")
            assert len(neighbours) == len(np.load(query.chunks, mmap_mode="r"))
            assert neighbours.max() < total
        trained = faiss.read_index(str(moved / RETRIEVER / "IVF4,PQ8x4.index"))
        assert trained.is_trained
        assert trained.ntotal == 0
    finally:
        moved.rename(exported)


def test_an_exported_version_is_whole_checked_and_copied_only_once(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    first = build(run, plan_of(run, f"{s3}/exported", str(corpus), small_model, small_model))
    write_corpus(corpus / "train/02_c.jsonl", texts[15:17])
    second = build(run, plan_of(run, f"{s3}/exported", str(corpus), small_model, small_model))
    for version, plan in ((1, first), (2, second)):
        to = tmp_path / f"v{version}"
        run("export", "--root", f"{s3}/exported", "--dataset", "books", "--version", version, "--to", to)
        run("validate", "--spec", to / "train.data.spec.json", to / "val.data.spec.json")
        found = arrays_of(plan)
        for shard in plan.shards:
            for kind in ("chunks", "seq2chunk", "chunk2seq"):
                exported = np.load(to / f"chunk_shards/{shard.name}.{kind}.npy", mmap_mode="r")
                np.testing.assert_array_equal(exported, found[f"{shard.name}/{kind}"])
            of_retriever = to / "retriever_sentence_transformer"
            exported = np.load(of_retriever / f"neighbours/{shard.name}.neighbours.npy", mmap_mode="r")
            np.testing.assert_array_equal(exported, found[f"{shard.name}/neighbours"])
            assert (of_retriever / f"embeddings/{shard.name}.embeddings.npy").exists()
        names = {"IVF4,Flat.index", "train.index", "val.index", "train.index.spec.json", "val.index.spec.json"}
        assert names < {path.name for path in of_retriever.iterdir()}
        assert s3 not in (to / "train.data.spec.json").read_text()
    to = tmp_path / "v2"
    (to / "retriever_sentence_transformer/val.index").unlink()
    with (to / "chunk_shards/00_a.chunks.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"damaged")
    capfd.readouterr()
    run("export", "--root", f"{s3}/exported", "--dataset", "books", "--to", to)
    assert ", 2 of them new" in capfd.readouterr().err
    run("validate", "--spec", to / "train.data.spec.json", to / "val.data.spec.json")
    run("export", "--root", f"{s3}/exported", "--dataset", "books", "--version", 9, "--to", to, code=65)
    assert "books has no version 9" in capfd.readouterr().err
    damaged = paths.embeddings_uri(first, "00_a")
    store.write(damaged, store.read(damaged)[:-1] + b"x")
    run("export", "--root", f"{s3}/exported", "--dataset", "books", "--version", 1, "--to", tmp_path / "v3", code=65)
    assert f"{damaged} was modified after its stage wrote it" in capfd.readouterr().err
    assert not list((tmp_path / "v3").rglob("00_a.embeddings.npy"))
    assert not list((tmp_path / "v3").rglob("*.spec.json"))
