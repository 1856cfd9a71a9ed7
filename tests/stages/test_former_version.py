"""Datasets that the previous version of this package published: read, checked, refreshed, repaired and exported.

They lie in tests/data/former; see the README there.
"""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from runs import call, compare, whole_run
from samples import Run

from retro_ops.compute import device
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, source_list, stage_graph
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.plan.plan import Plan
from retro_ops.storage import store
from retro_ops.storage.s3_client import client
from retro_ops.versions import history
from retro_ops.versions.audit import audit

ARCHIVE = Path(__file__).resolve().parents[1] / "data/former/dataset.tar.xz"
DATASETS = ("d", "r")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> Path:
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "model").symlink_to(model_dir)
    return folder


@pytest.fixture
def root(unpacked: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The datasets as they were published, with the working folder from which their plans find the model.

    They are 290 objects: only those that the previous test changed are written again.
    """
    monkeypatch.chdir(unpacked)
    bucket = s3.removeprefix("s3://")
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="former/")
    tags = {f"{s3}/{found['Key']}": found["ETag"].strip('"') for page in pages for found in page.get("Contents", ())}
    for path in (path for path in (unpacked / "bucket").rglob("*") if path.is_file()):
        uri, data = f"{s3}/{path.relative_to(unpacked / 'bucket')}", path.read_bytes()
        if tags.pop(uri, None) != hashlib.md5(data, usedforsecurity=False).hexdigest():
            store.write(uri, data)
    root = f"{s3}/former"
    store.at(root).delete_all([*tags])
    return root


@pytest.fixture
def former_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since version 2 the training sample is of runs of rows. Here it is all rows, so the bytes are the former ones."""
    monkeypatch.setitem(stage_graph.CODE_VERSIONS, "train-faiss-index", 1)


def published(root: str, dataset: str, number: int | None = None) -> str:
    """Location of the plan of a version."""
    return history.read(root, dataset).plan_uri(number)


def place(root: str, dataset: str) -> list[str]:
    return ["--root", root, "--dataset", dataset]


def states(plan: Plan) -> set[str]:
    return {entry.state for entry in audit(plan, thorough=True)}


def put(root: str, name: str, texts: list[str]) -> None:
    store.write(f"{root}/corpus/{name}", b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts))


@pytest.mark.parametrize("dataset", DATASETS)
def test_it_is_found_done_and_sound(root: str, run: Run, dataset: str) -> None:
    for number in history.read(root, dataset).entries:
        uri = published(root, dataset, number)
        plan = read_plan(uri)
        assert states(plan) == {"done"}
        store.at(uri).delete(paths.report_uri(plan, "validate"))
        run("validate", "--plan", uri)
    run("status", *place(root, dataset), "--thorough")


@pytest.mark.usefixtures("former_training")
def test_by_hand_every_stage_finds_its_output_done(
    root: str, unpacked: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (unpacked / "hand").rglob("*")}
    for command in (unpacked / "hand/commands").read_text().splitlines():
        stage, *arguments = command.split()
        capfd.readouterr()
        run(stage, *arguments)
        if stage != "write-specs":  # It has no report, and writes the same again.
            assert "already done" in capfd.readouterr().err, stage
    assert {path: path.read_bytes() for path in (unpacked / "hand").rglob("*")} == before


ADDED = "partial.lists.npy"
"""A file that no stage of the former version wrote."""


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """The parts of a report that do not depend on the machine, without the files that hold code versions."""
    others = ("/plan.json", "/manifest.json", f"/{ADDED}")
    # A store on S3 gives each object a tag, which reports hold since later.
    outputs = [
        {key: value for key, value in output.items() if key != "tag"}
        for output in found["outputs"]
        if not output["uri"].endswith(others)
    ]
    names = ("stage", "digest", "counts", "identity", "inputs")
    later = {name for name, parameter in PARAMETERS.items() if parameter.added_later}
    parameters = {name: value for name, value in found["parameters"].items() if name not in later}
    return {**{key: found[key] for key in names}, "outputs": outputs, "parameters": parameters}


DONE_AGAIN = (
    *("tokenize-and-chunk", "train-faiss-index", "build-faiss-index", "merge-indexes"),
    *("tune-search", "retrieve-neighbours", "write-specs"),
)
"""All but signatures, which are others since version 2 of their stage, and embeddings, which differ from machine to
machine: the others start from those that were recorded."""


@pytest.mark.usefixtures("former_training")
@pytest.mark.parametrize(("dataset", "number"), [("d", 1), ("d", 2), ("r", 1)])
def test_every_stage_writes_the_bytes_that_it_wrote(root: str, run: Run, dataset: str, number: int) -> None:
    """Chunks, maps, trained, partial and merged indexes, neighbours, distances and specs."""
    uri = f"{root}/plan.json"  # Its own place is an output of `write-specs`.
    document = json.loads(store.read(published(root, dataset, number)))
    document["code_versions"]["sign-documents"] = stage_graph.CODE_VERSIONS["sign-documents"]
    store.write(uri, json.dumps(document).encode())
    if number == 1 and dataset == "d":
        store.write(f"{root}/corpus/train/01_b.jsonl", store.read(f"{root}/corpus/before/01_b.jsonl"))
    plan = read_plan(uri)
    outputs = 0
    for stage, shard in stage_graph.tasks(plan, [stage for stage in stage_graph.stages(plan) if stage in DONE_AGAIN]):
        if plan.base and stage in ("train-faiss-index", "tune-search"):
            continue  # Those of the base version.
        marker = paths.report_uri(plan, stage, shard)
        former = report.require(marker, stage)
        folder = paths.stage_folder(plan, stage, shard)
        names = set(store.at(folder).list(folder))
        for output in former["outputs"]:
            store.at(marker).delete(output["uri"])
        store.at(marker).delete(marker)
        run(stage, "--plan", uri, *(("--shard", shard) if shard else ()))
        assert kept(report.require(marker, stage)) == kept(former)
        assert {uri for uri in store.at(folder).list(folder) if not uri.endswith(ADDED)} == names
        outputs += len(former["outputs"])
    assert outputs > 20


def test_parts_of_a_recipe_have_the_bytes_that_they_had(root: str, run: Run) -> None:
    uri = paths.sources_uri(root, "r", "first-run")
    listed, again = store.read(uri), f"{root}/again.json"
    run("list-sources", "--recipe", f"{root}/in/recipe.yaml", *place(root, "r"), "--output", again)
    assert store.read(again) == listed
    for file in (sources := source_list.from_json(listed, uri)).files:
        marker = sources.report_uri(file)
        former = report.require(marker, "it")
        store.at(marker).delete(marker)
        run("split-corpus", "--sources", uri, "--file", file.name)
        made = report.require(marker, "it")
        assert kept(made) == kept(former)
        assert made["details"] == former["details"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_refresh_finds_nothing_to_do(root: str, dataset: str) -> None:
    recipe = ("--recipe", f"{root}/in/recipe.yaml") if dataset == "r" else ()
    done = whole_run(root, dataset, "third run", *recipe, "--refresh")
    assert done.changes["nothing"]
    assert history.read(root, dataset).current == max(history.read(root, dataset).entries)


def test_a_refresh_builds_the_new_shard_alone_and_equals_a_build_from_scratch(root: str, texts: list[str]) -> None:
    put(root, "train/04_e.jsonl", [text[:1500] for text in texts[3:6]])
    done = whole_run(root, "d", "third run", "--refresh", "--target-recall", "1")
    assert done.changes["added"] == ["04_e"]
    assert done.plan.base is not None, "the former version is what it starts from"
    assert done.calls["tokenize-and-chunk"] == done.calls["embed-chunks"] == done.calls["build-faiss-index"] == 1
    assert done.calls["train-faiss-index"] == 0
    # The patterns of the former version decide about the new shard.
    assert {s.name: (s.indexed, s.queried) for s in done.plan.shards} == {
        "00_a": (True, True),
        "01_b": (True, True),
        "02_c": (False, True),
        "03_d": (True, False),
        "04_e": (True, True),
        "val_v": (True, True),
    }
    assert history.read(root, "d").current == 3
    call("validate", "--plan", done.plan_uri)
    p = done.plan
    assert p.index_shards is not None
    assert p.query_shards is not None
    scratch = whole_run(
        *(f"{root}/scratch", "d", "x", "--corpus", f"{root}/corpus/train", "--validation-corpus"),
        *(f"{root}/corpus/val", "--tokenizer", "model", "--model", "model", "--indexed", p.index_shards),
        *("--queried", p.query_shards, "--duplicates", "drop", "--max-overlap", p.parameters.max_overlap),
        *("--index-type", p.parameters.index_type, "--target-recall", "1", "--min-recall", "0"),
    )
    equal, chunks = compare(done, scratch)
    assert chunks > 50
    if device.precision("cpu").dtype == "bfloat16":  # As on the machine that embedded the former chunks.
        assert equal == dict.fromkeys(equal, 1.0)
    else:
        assert equal["chunks"] == 1.0
        assert equal["neighbours"] > 0.7


def test_a_refresh_of_a_recipe_splits_only_the_file_that_changed(root: str) -> None:
    uri = f"{root}/in/mixed/01.jsonl"
    lines = store.read(uri).splitlines()
    store.write(uri, b"\n".join(lines[:-3]) + b"\n")
    done = whole_run(root, "r", "second run", "--recipe", f"{root}/in/recipe.yaml", "--refresh", "--max-drift", "9")
    assert done.plan.base is not None
    assert all(name.startswith(("01_", "val_01_")) for name in (*done.changes["changed"], *done.changes["removed"]))
    assert done.changes["unchanged"] > 0
    assert history.read(root, "r").current == 2
    call("validate", "--plan", done.plan_uri)


@pytest.mark.parametrize("stage", ["tokenize-and-chunk", "merge-indexes", "write-specs"])
def test_what_is_damaged_of_it_is_repaired(root: str, stage: str) -> None:
    plan = read_plan(published(root, "d"))
    shard = "01_b" if stage in stage_graph.SHARD_STAGES else None
    (damaged, *_) = report.require(paths.report_uri(plan, stage, shard), stage)["outputs"]
    data = bytearray(store.read(damaged["uri"]))
    data[len(data) // 2] ^= 1
    store.write(damaged["uri"], bytes(data))
    assert states(plan) == {"done", "damaged"}
    done = whole_run(root, "d", "repair", "--repair")
    assert states(done.plan) == {"done"}
    assert history.read(root, "d").current == 3
    assert history.read(root, "d").folder() == paths.stage_folder(done.plan, "write-specs")


@pytest.mark.parametrize("dataset", DATASETS)
def test_it_is_exported(root: str, run: Run, tmp_path: Path, dataset: str) -> None:
    run("export", *place(root, dataset), "--to", tmp_path)
    run("validate", "--spec", tmp_path / "train.data.spec.json", tmp_path / "val.data.spec.json")
    plan = read_plan(published(root, dataset))
    assert {path.name for path in tmp_path.rglob("*.chunks.npy")} == {f"{s.name}.chunks.npy" for s in plan.shards}


def test_versions_are_listed_compared_rolled_back_and_pruned(
    root: str, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run("list", *place(root, "d"))
    run("diff", *place(root, "d"))
    said = capfd.readouterr().out
    assert "version 1 -> 2" in said
    assert "shards added: 1 (03_d)" in said
    assert "shards changed: 1 (01_b)" in said
    run("rollback", *place(root, "d"), "--to", 1)
    assert history.read(root, "d").current == 1
    run("rollback", *place(root, "d"), "--to", 2)
    run("prune", *place(root, "d"), "--keep", 1, "--yes")
    assert states(read_plan(published(root, "d", 2))) == {"done"}
