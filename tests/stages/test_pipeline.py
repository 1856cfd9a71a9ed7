"""The whole pipeline by plan, locally and on a real S3 server; and what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import faiss
import numpy as np
import pytest
from samples import Run, synthetic_shard, tokenize_flags, write_corpus, write_index_spec

from retro_ops.errors import TransientError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.plan import Plan
from retro_ops.storage import npy, store
from retro_ops.storage.base import ConflictError
from retro_ops.storage.s3 import PART_BYTES, _client

SHARD_STAGES_BEFORE = ("tokenize-and-chunk", "embed-chunks")
ARRAYS = ("chunks", "seq2chunk", "chunk2seq", "embeddings", "neighbours")


def _corpus(folder: Path, texts: list[str]) -> Path:
    write_corpus(folder / "train/00_a.jsonl", [{"text": t, "id": i} for i, t in enumerate(texts[:6])])
    write_corpus(folder / "train/01_b.jsonl", texts[6:12])
    write_corpus(folder / "val/val_a.jsonl", texts[12:15])
    return folder


def _plan(run: Run, root: str, corpus: str, tokenizer: str, model: str, *options: str) -> str:
    uri = paths.plan_uri(root, "books", "a run: 1")
    run(
        *("plan", "--root", root, "--dataset", "books", "--corpus", f"{corpus}/train/*.jsonl"),
        *("--validation-corpus", f"{corpus}/val", "--output", uri, "--tokenizer", tokenizer, "--model", model),
        *("--index-type", "IVF4,Flat", "--num-neighbours", 2, *options),
    )
    return uri


def _build(run: Run, uri: str) -> Plan:
    """Every stage of the plan, in order."""
    plan = read_plan(uri)
    for stage in SHARD_STAGES_BEFORE:
        for shard in plan.shards:
            run(stage, "--plan", uri, "--shard", shard.name)
    run("train-faiss-index", "--plan", uri)
    for shard in plan.shards:
        run("build-faiss-index", "--plan", uri, "--shard", shard.name)
    run("merge-indexes", "--plan", uri)
    run("tune-search", "--plan", uri)
    for shard in plan.shards:
        run("retrieve-neighbours", "--plan", uri, "--shard", shard.name)
    for stage in ("write-specs", "describe", "validate", "publish"):
        run(stage, "--plan", uri)
    return plan


def _arrays(plan: Plan) -> dict[str, np.ndarray]:
    found = {}
    for shard in plan.shards:
        files = paths.chunks_files(plan, shard.name)
        files["embeddings"] = paths.embeddings_uri(plan, shard.name)
        files["neighbours"] = paths.neighbours_uri(plan, shard.name)
        for name, uri in files.items():
            reader = npy.open_npy(uri)
            found[f"{shard.name}/{name}"] = reader.rows(0, len(reader))
    return found


def test_s3_and_local_give_the_same_dataset_and_a_rerun_does_nothing(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    for path in corpus.rglob("*.jsonl"):
        store.write(f"{s3}/corpus/{path.relative_to(corpus)}", path.read_bytes())
    local = _build(run, _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir))
    uri = _plan(run, f"{s3}/root", f"{s3}/corpus", model_dir, model_dir)
    remote = _build(run, uri)
    expected, found = _arrays(local), _arrays(remote)
    assert set(expected) == set(found)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (found["val_a/neighbours"] >= 0).all()
    before = {name: store.read(name) for name in store.at(s3).list(f"{s3}/root")}
    capfd.readouterr()
    _build(run, uri)
    assert "started" not in capfd.readouterr().err
    assert {name: store.read(name) for name in store.at(s3).list(f"{s3}/root")} == before
    changed = _plan(run, f"{s3}/root", f"{s3}/corpus", model_dir, model_dir, "--chunk-size", "32")
    shard = remote.shards[0].name
    assert paths.chunks_files(read_plan(changed), shard) != paths.chunks_files(remote, shard)


def test_the_validation_index_extends_the_training_index(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    plan = _build(run, _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir))
    train, val = (faiss.read_index(paths.index_uri(plan, split)) for split in ("train", "val"))
    found = _arrays(plan)
    rows = np.concatenate([found[f"{s}/embeddings"] for s in ("00_a", "01_b", "val_a")]).astype(np.float32)
    assert train.ntotal == len(rows) - len(found["val_a/embeddings"])
    for index in (train, val):
        index.make_direct_map()
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), rows[: index.ntotal])


@pytest.mark.parametrize("index_type", ["Flat", "IVF8,Flat", "IVF8,PQ8x4", "OPQ8,IVF8,PQ8x4", "PCA16,IVF8,SQ8"])
def test_merged_partials_are_byte_equal_to_one_serial_build(tmp_path: Path, run: Run, index_type: str) -> None:
    shards = [synthetic_shard(tmp_path / name, [200 + 50 * i], i) for i, name in enumerate("abc")]
    spec = write_index_spec(tmp_path / "spec.json", shards)
    trained, serial, merged = (tmp_path / f"{name}.index" for name in ("trained", "serial", "merged"))
    run("train-faiss-index", "--spec", spec, "--index-type", index_type, "--output", trained)
    common = ("build-faiss-index", "--spec", spec, "--trained-index", trained)
    run(*common, "--output-index", serial)
    partials = [tmp_path / f"partial{i}.index" for i in range(3)]
    for i, partial in enumerate(partials):
        run(*common, "--output-index", partial, "--only-shard", i)
    run("merge-indexes", "--base-index", trained, "--partials", *partials, "--output-index", merged)
    assert merged.read_bytes() == serial.read_bytes()


def test_a_partial_index_of_another_training_is_refused(tmp_path: Path, run: Run) -> None:
    spec = write_index_spec(tmp_path / "spec.json", [synthetic_shard(tmp_path / "a", [300], 0)])
    for name, lists in (("one", 8), ("two", 4)):
        run(
            *("train-faiss-index", "--spec", spec, "--index-type", f"IVF{lists},Flat"),
            *("--output", tmp_path / f"{name}.index"),
        )
    files = ("--trained-index", tmp_path / "one.index", "--output-index", tmp_path / "part.index")
    run("build-faiss-index", "--spec", spec, *files)
    merge = ("merge-indexes", "--base-index", tmp_path / "two.index", "--partials", tmp_path / "part.index")
    run(*merge, "--output-index", tmp_path / "out.index", code=65)


def _stage(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *map(str, arguments)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )


def _kill_at(moments: Sequence[float], seconds: float, arguments: Sequence[object], marker: Path) -> int:
    """Starts the stage once for each moment and kills it then; counts those that died before the report."""
    died = 0
    for moment in moments:
        process = _stage(*arguments)
        time.sleep(moment * seconds)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        if code == -signal.SIGKILL:
            died += not marker.exists()
        if marker.exists():  # It was faster: its output must be whole, and the next kill starts anew.
            found = report.read(str(marker))
            assert found is not None
            assert all(store.sha256(o["uri"]) == o["sha256"] for o in found["outputs"])
            marker.unlink()
    return died


def test_a_stage_killed_at_any_moment_ends_byte_equal(tmp_path: Path, texts: list[str], t5_dir: str) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", texts * 40)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    start = time.monotonic()
    assert _stage("tokenize-and-chunk", corpus, *tokenize_flags(calm, t5_dir)).wait() == 0
    seconds = time.monotonic() - start
    arguments = ["tokenize-and-chunk", corpus, *tokenize_flags(stormy, t5_dir)]
    moments = [random.Random(7).uniform(0.2, 1.0) for _ in range(10)]
    assert _kill_at(moments, seconds, arguments, stormy / "chunks.report.json") >= 3
    assert _stage(*arguments).wait() == 0
    names = {path.name for path in calm.iterdir()}
    assert {path.name for path in stormy.iterdir()} == names, "leftovers of killed writers are gone"
    for name in names - {"chunks.report.json"}:
        assert (calm / name).read_bytes() == (stormy / name).read_bytes(), name


def test_validate_names_the_file_whatever_byte_is_changed(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir)
    plan = _build(run, uri)
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


def test_the_store_says_what_is_wrong(
    tmp_path: Path, run: Run, s3: str, t5_dir: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = tokenize_flags(tmp_path, t5_dir)
    run("tokenize-and-chunk", f"{s3}/nothing.jsonl", *flags, code=65)
    run("tokenize-and-chunk", f"{s3}/folder/", *flags, code=65)
    assert "no corpus file at" in capfd.readouterr().err
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    _client.cache_clear()
    run("tokenize-and-chunk", f"{s3}/x.jsonl", *flags, code=78)
    said = capfd.readouterr().err
    assert "the store refused" in said
    assert secret not in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _client.cache_clear()
    run("tokenize-and-chunk", f"{s3}/x.jsonl", *flags, code=75)
    assert "cannot reach the store" in capfd.readouterr().err


def test_large_objects_over_tls_arrive_whole(s3_tls: str) -> None:
    """Over TLS boto3 sends checksums in trailers; more than two parts, with the header known last."""
    rows = np.arange(5_000_000, dtype=np.int64)
    uri = f"{s3_tls}/large.npy"
    with npy.NpyWriter(uri, np.int64) as writer:
        for start in range(0, len(rows), 700_000):
            writer.append(rows[start : start + 700_000])
        written = writer.close()
    assert written.bytes > 2 * PART_BYTES
    assert written.sha256 == store.sha256(uri)
    reader = npy.open_npy(uri)
    np.testing.assert_array_equal(reader.rows(4_999_990, 5_000_000), rows[-10:])
    assert reader.shape == (5_000_000,)


def test_an_abandoned_upload_is_swept_and_a_lost_race_is_told(s3: str) -> None:
    uri = f"{s3}/abandoned.bin"
    first, second = store.at(uri).create(uri), store.at(uri).create(uri)
    for writer in (first, second):  # and never closed, as by a kill
        writer.write(b"x" * (2 * PART_BYTES + 1))
    uploads = _client().list_multipart_uploads(Bucket=s3.removeprefix("s3://"), Prefix="abandoned")
    assert len(uploads.get("Uploads", ())) == 1
    assert not store.exists(uri)
    with pytest.raises(TransientError, match="took over"):
        first.close()
    current = f"{s3}/current.json"
    store.at(current).write_if(current, b"1", None)
    with pytest.raises(ConflictError):
        store.at(current).write_if(current, b"2", None)
    tagged = store.at(current).read_tagged(current)
    assert tagged is not None
    store.at(current).write_if(current, b"3", tagged[1])
    with pytest.raises(ConflictError):
        store.at(current).write_if(current, b"4", tagged[1])
    assert store.read(current) == b"3"


def test_publish_refuses_what_is_below_a_floor(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir)
    plan = _build(run, uri)
    current = Path(paths.current_uri(plan.root, plan.dataset))
    current.unlink(missing_ok=True)
    card = Path(paths.card_uri(plan, "json"))
    measured = json.loads(card.read_text())
    assert measured["quality"]["train"]["recall"] > 0.95
    measured["quality"]["train"]["recall"] = 0.7
    measured["quality"]["val"]["leaked"] = 0.2
    card.write_text(json.dumps(measured))
    run("publish", "--plan", uri, "--max-leaked", "0.1", code=65)
    said = capfd.readouterr().err
    assert "recall of train is 0.7000, below 0.8" in said
    assert "share of leaked rows of val is 0.2000, above 0.1" in said
    assert "raise target_recall" in said
    assert not current.exists()
    run("publish", "--plan", uri, "--min-recall", "0.5")
    assert current.exists()
    current.unlink()
    Path(paths.report_uri(plan, "describe")).unlink()
    run("publish", "--plan", uri, code=65)
    assert "run `retro-ops describe`" in capfd.readouterr().err


def _words(tokens: np.ndarray, pad_id: int) -> list[int]:
    found = [int(token) for token in tokens]
    while found and found[-1] == pad_id:
        found.pop()
    return found


def test_every_figure_of_the_card_can_be_had_from_the_arrays(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    """A sample as large as the dataset, so that the figures are those of all rows; computed here the plain way."""
    corpus = _corpus(tmp_path / "corpus", [*texts[:14], texts[3]])  # A validation document that is in training too.
    write_corpus(corpus / "train/02_b.jsonl", [texts[0] + " The end.", texts[15]])
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--recall-sample", "100000")
    plan = _build(run, uri)
    found, card = _arrays(plan), json.loads(store.read(paths.card_uri(plan, "json")))
    assert card["totals"]["chunks"] == sum(len(found[f"{shard.name}/chunks"]) for shard in plan.shards)
    assert card["totals"]["documents"] == sum(len(found[f"{shard.name}/seq2chunk"]) for shard in plan.shards)
    assert {(row["category"], row["split"]): row["shards"] for row in card["contents"]} == {
        ("a", "train"): 1, ("b", "train"): 2, ("val_a", "val"): 1,
    }  # fmt: skip
    for split in plan.splits():
        shards = [shard.name for shard in plan.indexed(split)]
        chunks = np.concatenate([found[f"{name}/chunks"] for name in shards])
        vectors = np.concatenate([found[f"{name}/embeddings"] for name in shards]).astype(np.float64)
        owners = np.concatenate(
            [np.load(paths.document_ids_uri(paths.chunks_files(plan, name)["chunks"])) for name in shards]
        )
        starts = dict(zip(shards, np.cumsum([0, *(len(found[f"{name}/chunks"]) for name in shards)]), strict=False))
        by_category: dict[str, list[tuple[int, list[int]]]] = {}
        for shard in plan.queried(split):
            for row, near in enumerate(found[f"{shard.name}/neighbours"].tolist()):
                of = by_category.setdefault(shard.name.split("_", 1)[1] if split == "train" else shard.name, [])
                of.append((int(starts[shard.name]) + row, near))
        figures = card["quality"][split]
        for name, rows in by_category.items():
            hits = wanted = 0
            pairs: list[tuple[bool, bool, bool]] = []
            leaked = []
            for own, near in rows:
                ranked = sorted((float(np.float32(((vectors[own] - x) ** 2).sum())), i) for i, x in enumerate(vectors))
                true = [i for _, i in ranked if owners[i] != owners[own]][: plan.parameters.num_neighbours]
                hits, wanted = hits + len(set(true) & set(near)), wanted + len(true)
                mine, longest = _words(chunks[own], plan.identity.pad_id), 0
                for other in [i for i in near if i >= 0]:
                    theirs = _words(chunks[other], plan.identity.pad_id)
                    common = (Counter(mine) & Counter(theirs)).total() / max(len(mine), len(theirs))
                    pairs.append((bool(owners[own] == owners[other]), common > 0.8, mine == theirs))
                    longest = max(
                        longest, SequenceMatcher(None, mine, theirs, autojunk=False).find_longest_match().size
                    )
                leaked.append(longest / chunks.shape[1] > 0.5)
            said = figures["categories"][name]
            assert said["rows"] == said["sampled_rows"] == len(rows)
            assert said["recall"] == pytest.approx(hits / wanted)
            assert said["full_rows"] == pytest.approx(np.mean([min(near) >= 0 for _, near in rows]))
            shares = [said["same_document"], said["near_duplicate"], said["identical"]]
            assert shares == pytest.approx(np.mean(pairs, axis=0).tolist())
            assert said["leaked"] == pytest.approx(np.mean(leaked))
        total = sum(map(len, by_category.values()))
        mean = sum(figures["categories"][name]["leaked"] * len(rows) for name, rows in by_category.items()) / total
        assert figures["leaked"] == pytest.approx(mean)
        assert sum(figures["distances"]["nearest"]) == sum(
            near[0] >= 0 for rows in by_category.values() for _, near in rows
        )
        assert figures["index"]["vectors"] == len(vectors)
        assert figures["index"]["quantisation_error"] == 0
        assert sum(figures["index"]["list_sizes"]["lists"]) == figures["index"]["lists"] == 4
    assert len(card["examples"]) == 20
    assert card["expected_chunks"] == pytest.approx(card["totals"]["chunks"], rel=0.01), "all of it was sampled"
    assert all(stage["expected_seconds"] > 0 and stage["expected_peak_rss_bytes"] > 0 for stage in card["stages"])
    page = store.read(paths.card_uri(plan, "html")).decode()
    for door in ("<script", "<link", "src=", "@import", 'href="http', "url(http"):
        assert door not in page, "it needs nothing else"
    assert "<mark>" in page
    assert f"{card['totals']['chunks']:,}" in page


def test_status_says_what_is_done_missing_and_damaged(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = _plan(run, f"{s3}/status", str(_corpus(tmp_path / "corpus", texts)), model_dir, model_dir)

    def status(*arguments: str) -> tuple[dict[tuple[str, str | None], str], float]:
        capfd.readouterr()
        run("status", *arguments, "--json")
        facts = json.loads(capfd.readouterr().out)
        return {(e["stage"], e["shard"]): e["state"] for e in facts["entries"]}, facts["expected_seconds_left"]

    of_run = ("--root", f"{s3}/status", "--dataset", "books", "--run", "a run: 1")
    before, left = status(*of_run)
    assert set(before.values()) == {"missing"}
    assert left > 0
    plan = _build(run, uri)
    published = ("--root", f"{s3}/status", "--dataset", "books")
    after, left = status(*published)
    assert (set(after.values()), left) == ({"done"}, 0)
    assert set(after) == set(before)
    at = store.at(s3)
    at.delete(paths.report_uri(plan, "embed-chunks", "01_b"))
    at.delete(paths.neighbours_uri(plan, "val_a"))
    trained = paths.report_uri(plan, "train-faiss-index")
    store.write(trained, store.read(trained).replace(b"0", b"1", 1))
    found, left = status("--plan", uri)
    wrong = {key: state for key, state in found.items() if state != "done"}
    assert wrong == {
        ("embed-chunks", "01_b"): "missing",
        ("retrieve-neighbours", "val_a"): "damaged",
        ("train-faiss-index", None): "damaged",
    }
    assert left > 0
    run("status", "--plan", uri)
    said = capfd.readouterr().out
    assert "(1 of 3 shards are complete)" in said
    assert f"{paths.neighbours_uri(plan, 'val_a')} is missing or truncated" in said
    assert "1 missing, 2 damaged" in said
    run("status", "--root", f"{s3}/status", "--dataset", "nobody", code=65)
    assert "was never published" in capfd.readouterr().err


def test_an_exported_version_is_whole_checked_and_copied_only_once(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    first = _build(run, _plan(run, f"{s3}/exported", str(corpus), model_dir, model_dir))
    write_corpus(corpus / "train/02_c.jsonl", texts[15:17])
    second = _build(run, _plan(run, f"{s3}/exported", str(corpus), model_dir, model_dir))
    for version, plan in ((1, first), (2, second)):
        to = tmp_path / f"v{version}"
        run("export", "--root", f"{s3}/exported", "--dataset", "books", "--version", version, "--to", to)
        run("validate", "--spec", to / "train.data.spec.json", to / "val.data.spec.json")
        found = _arrays(plan)
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
    assert f"{damaged} is not what its stage wrote" in capfd.readouterr().err
    assert not list((tmp_path / "v3").rglob("00_a.embeddings.npy"))
    assert not list((tmp_path / "v3").rglob("*.spec.json"))


def test_filters_are_applied_where_neighbours_are_retrieved(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    """A validation text that goes on where a training text ends: that one's chunks come first, unless filtered."""
    corpus = _corpus(tmp_path / "corpus", texts)
    write_corpus(corpus / "val/val_a.jsonl", [texts[4] + " And so on.", texts[13]])
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir)
    card = json.loads(store.read(paths.card_uri(_build(run, uri), "json")))
    assert card["quality"]["val"]["leaked"] > 0.1
    assert card["removed"]["val"]["shared_run"] == 0
    filtered = _build(
        run, _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--max-shared-run", "20")
    )
    card = json.loads(store.read(paths.card_uri(filtered, "json")))
    longest = card["quality"]["val"]["longest_shared_run"]
    size = filtered.parameters.chunk_size
    assert sum(n for n, low in zip(longest["rows"], longest["bins"], strict=False) if low * size > 20) == 0
    assert card["quality"]["val"]["leaked"] == 0
    assert card["removed"]["val"]["shared_run"] > 0
    assert card["removed"]["train"]["shared_run"] == 0
    assert card["quality"]["val"]["recall"] > 0.95


def test_a_corpus_too_small_for_its_index_type_fails_or_goes_on_with_another_as_asked(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--index-type", "IVF4096,PQ8")
    for stage in SHARD_STAGES_BEFORE:
        for shard in read_plan(uri).shards:
            run(stage, "--plan", uri, "--shard", shard.name)
    run("train-faiss-index", "--plan", uri, code=65)
    assert "too few to train index type 'IVF4096,PQ8'" in capfd.readouterr().err
    options = ("--index-type", "IVF4096,PQ8", "--index-too-small", "downgrade")
    plan = _build(run, _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, *options))
    card = json.loads(store.read(paths.card_uri(plan, "json")))
    assert card["index_type"]["type"] == "Flat"
    assert "instead of IVF4096,PQ8, as " in card["index_type"]["why"]


def test_recompute_finds_what_checksums_cannot(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files that are sound by every rule and checksum, but were made from something else."""
    corpus = _corpus(tmp_path / "corpus", texts)
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir)
    plan = _build(run, uri)
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


def test_an_index_type_of_auto_is_chosen_and_recorded(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    corpus = _corpus(tmp_path / "corpus", texts)
    uri = _plan(run, str(tmp_path / "root"), str(corpus), model_dir, model_dir, "--index-type", "auto")
    plan = _build(run, uri)
    made = report.read(paths.report_uri(plan, "train-faiss-index"))
    assert made is not None
    assert made["details"]["index_type"] == "Flat"
    assert "brute force is cheapest" in made["details"]["why"]
    tuned = report.read(paths.report_uri(plan, "tune-search"))
    assert tuned is not None
    assert tuned["details"]["train"]["recall"] > 0.95
