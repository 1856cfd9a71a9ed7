"""Validation: every changed byte is found, and what checksums cannot find is computed again."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from books import build, make_corpus, plan_of
from samples import Run

from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import store


def test_validate_names_the_file_if_any_byte_is_changed(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model)
    plan = build(run, uri)
    validated = Path(paths.report_uri(plan, "validate"))
    validated.unlink()
    runs = Path(paths.run_folder(plan.root, plan.dataset, ""))
    artefacts = [
        path
        for path in (tmp_path / "root/books").rglob("*")
        if path.is_file() and path.suffix != ".lock" and runs.parent not in path.parents
    ]
    artefacts.remove(Path(paths.current_uri(plan.root, plan.dataset)))
    assert {"report.json", "describe.report.json", "card.html", "trained.index", "chunks.documents.jsonl.zst"} < {
        p.name for p in artefacts
    }
    rng = random.Random(1)
    for path in artefacts:
        whole = path.read_bytes()
        for position in {0, rng.randrange(len(whole)), rng.randrange(len(whole)), len(whole) - 1}:
            data = bytearray(whole)
            data[position] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            validated.unlink(missing_ok=True)
            capfd.readouterr()
            run("validate", "--plan", uri, code=65)
            assert str(path) in capfd.readouterr().err, f"byte {position} of {len(whole)}"
            assert not validated.exists()
        path.write_bytes(whole)
    run("validate", "--plan", uri)
    validated.unlink()
    _check_by_shards(run, uri, plan, artefacts, capfd)


def _check_by_shards(run: Run, uri: str, plan: Plan, artefacts: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    """The check of a shard finds the damage of its files, and what it checked is not read again until published."""
    name = plan.shards[0].name
    of_shard = [path for path in artefacts if f"/shards/{name}/" in str(path)]
    assert {path.name for path in of_shard} >= {"neighbours.npy", "partial.index", "partial.lists.npy"}
    for path in of_shard:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        run("validate-shards", "--plan", uri, "--shard", name, code=65)
        assert str(path) in capfd.readouterr().err
        path.write_bytes(whole)
    run("validate-shards", "--plan", uri, "--shard", ",".join(shard.name for shard in plan.shards))
    damaged = Path(paths.neighbours_uri(plan, name))
    whole = damaged.read_bytes()
    damaged.write_bytes(bytes(len(whole)))
    run("validate", "--plan", uri, "--thorough", code=65)
    run("validate", "--plan", uri)
    run("publish", "--plan", uri)
    Path(paths.report_uri(plan, "validate")).unlink()
    run("validate", "--plan", uri, code=65)
    damaged.write_bytes(whole)


def test_recompute_finds_what_checksums_cannot(
    tmp_path: Path, run: Run, texts: list[str], small_model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files that are sound by every rule and checksum, but were made from something else."""
    corpus = make_corpus(tmp_path / "corpus", texts)
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model)
    plan = build(run, uri)
    run("validate", "--plan", uri, "--recompute", "0.5")
    name = plan.shards[0].name
    for forge, stage, said in (
        (_swap_rows, "embed-chunks", "is not the embedding of its chunk"),
        (_shift_distances, "retrieve-neighbours", "has wrong distances to its neighbours"),
    ):
        marker = Path(paths.report_uri(plan, stage, name))
        kept = {path: path.read_bytes() for path in marker.parent.iterdir()}
        forge(plan, name)
        made = json.loads(marker.read_text())
        for output in made["outputs"]:
            output["sha256"] = store.sha256(str(marker.parent / output["uri"]))
        made.pop(report.SEAL)
        marker.write_bytes(report.sealed(made))
        Path(paths.report_uri(plan, "validate")).unlink(missing_ok=True)
        run("validate", "--plan", uri)
        capfd.readouterr()
        run("validate", "--plan", uri, "--recompute", "1", code=65)
        assert said in capfd.readouterr().err
        for path, data in kept.items():
            path.write_bytes(data)
    run("validate", "--plan", uri, "--recompute", "1")


def _swap_rows(plan: Plan, shard: str) -> None:
    path = paths.embeddings_uri(plan, shard)
    np.save(path, np.load(path)[::-1])


def _shift_distances(plan: Plan, shard: str) -> None:
    path = paths.distances_uri(paths.neighbours_uri(plan, shard))
    np.save(path, np.nextafter(np.load(path), np.float32(9)))
