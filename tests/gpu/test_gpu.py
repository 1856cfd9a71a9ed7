"""Every device path gives what the CPU path gives. Needs a GPU, torch with CUDA and faiss-gpu."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from retro_ops.cli import main
from retro_ops.compute import device
from retro_ops.embedding import backends
from retro_ops.embedding.embedder import Candidate, Embedder
from retro_ops.embedding.model import open_model
from retro_ops.execution import report
from retro_ops.plan.specs import IndexShard, index_spec_to_json
from retro_ops.tokens import packing
from retro_ops.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.gpu

ROWS, DIMENSION = 50_000, 384


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clustered unit vectors of one shard, with documents of ten chunks."""
    folder = tmp_path_factory.mktemp("gpu")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((500, DIMENSION))
    vectors = centres[rng.integers(500, size=ROWS)] + 0.6 * rng.standard_normal((ROWS, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / "embeddings.npy", vectors.astype(np.float16))
    np.save(folder / "chunk2seq.npy", (np.arange(ROWS) // 10).astype(np.int32))
    names = ("chunks", "seq2chunk", "chunk2seq", "embeddings")
    shard = IndexShard(*(str(folder / f"{name}.npy") for name in names))
    (folder / "index.spec.json").write_text(index_spec_to_json([shard], str(folder / "index.spec.json")))
    return folder


def _run(*arguments: Any) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def _train(folder: Path, index_type: str, where: str) -> Path:
    path = folder / f"{where}.trained.index"
    _run(
        *("train-faiss-index", "--spec", folder / "index.spec.json", "--output", path),
        *("--index-type", index_type, "--device", where),
    )
    return path


def _retrieve(folder: Path, index: Path, where: str, *options: str) -> np.ndarray[Any, Any]:
    output = folder / f"{index.stem}.{where}.neighbours.npy"
    _run(
        *("retrieve-neighbours", "--query-embeddings", folder / "embeddings.npy"),
        *("--query-chunk2seq", folder / "chunk2seq.npy", "--neighbours-output", output),
        *("--index", index, "--index-spec", folder / "index.spec.json", "--device", where, *options),
    )
    return np.asarray(np.load(output))


def _build(folder: Path, trained: Path) -> Path:
    path = folder / f"{trained.stem}.filled.index"
    _run(
        *("build-faiss-index", "--spec", folder / "index.spec.json"),
        *("--trained-index", trained, "--output-index", path),
    )
    return path


def _overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float((a[:, :, None] == b[:, None, :]).any(axis=2).mean())


def test_auto_takes_the_gpu_and_says_so() -> None:
    for library in ("torch", "faiss"):
        chosen = device.choose("auto", library)
        assert chosen.chosen == "cuda"
        assert "GPU" in chosen.why


@pytest.mark.parametrize("index_type", ["IVF64,Flat", "IVF64,PQ32"])
def test_an_index_trained_on_the_gpu_searches_as_well(folder: Path, index_type: str) -> None:
    exact = _retrieve(folder, _build(folder, _train(folder, "Flat", "cpu")), "cpu")
    recall = {}
    for where in ("cpu", "cuda"):
        trained = _train(folder, index_type, where)
        found = report.read(str(trained.with_suffix(".report.json")))
        assert found is not None
        assert found["device"]["chosen"] == where
        recall[where] = _overlap(exact, _retrieve(folder, _build(folder, trained), "cpu"))
    assert recall["cuda"] == pytest.approx(recall["cpu"], abs=0.02)


@pytest.mark.parametrize("index_type", ["Flat", "IVF64,Flat", "IVF64,PQ32"])
def test_a_search_on_the_gpu_finds_the_same(folder: Path, index_type: str) -> None:
    index = _build(folder, _train(folder, index_type, "cpu"))
    cpu, gpu = (_retrieve(folder, index, where, "--target-recall", "1") for where in ("cpu", "cuda"))
    np.testing.assert_array_equal(cpu, gpu)
    assert _overlap(_retrieve(folder, index, "cuda"), cpu) > 0.94
    cpu, gpu = (_retrieve(folder, index, where, "--profile", "seed") for where in ("cpu", "cuda"))
    # Distances differ in the last bits, so near-ties may swap.
    assert _overlap(cpu, gpu) > 0.99
    assert (cpu == -1).mean() == pytest.approx((gpu == -1).mean(), abs=0.001)


def test_rows_of_a_long_document_are_widened_on_the_gpu(folder: Path) -> None:
    """A document of 5,000 chunks asks for many more hits than are scored at first."""
    np.save(folder / "chunk2seq.npy", np.concatenate((np.zeros(5000), np.arange(ROWS - 5000) // 10 + 1)).astype("i4"))
    try:
        index = _build(folder, _train(folder, "IVF64,Flat", "cpu"))
        found = _retrieve(folder, index, "cuda")
        assert (found != -1).all()
        assert (found[:5000] >= 5000).all()
    finally:
        np.save(folder / "chunk2seq.npy", (np.arange(ROWS) // 10).astype(np.int32))


@pytest.mark.parametrize("how", ["text", "ids"])
@pytest.mark.parametrize("layers", ["own layers", "packed", "padded"])
def test_embeddings_on_the_gpu_equal_those_on_the_cpu(
    tmp_path: Path, model_dir: str, how: str, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, places = Embedder._candidates, ["own layers", "packed", "padded"]

    def others(embedder: Embedder) -> Iterator[Candidate]:
        for candidate in candidates(embedder):
            place = next(number for number, name in enumerate(places) if name in candidate.name)
            if place >= places.index(layers) or embedder.device.chosen == "cpu":
                yield candidate

    monkeypatch.setattr(Embedder, "_candidates", others)
    text = " ".join(f"Chapter {i} speaks of the sea, the wind and number {i * i}." for i in range(2000))
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": text}) + "\n")
    outputs = [f"--{n}={tmp_path}/{f}.npy" for n, f in (("chunks-out", "c"), ("seq2chunk-index-out", "s"))]
    outputs.append(f"--chunk2seq-index-out={tmp_path}/d.npy")
    _run("tokenize-and-chunk", tmp_path / "corpus.jsonl", *outputs, "--tokenizer", model_dir)
    for where in ("cpu", "cuda"):
        options = ("--model", model_dir, "--device", where, "--embed-input", how)
        _run("embed-chunks", tmp_path / "c.npy", tmp_path / f"{where}.npy", *options)
    found = report.read(str(tmp_path / "cuda.report.json"))
    assert found is not None
    assert layers in found["details"]["way"]
    cpu, gpu = (np.load(tmp_path / f"{where}.npy").astype(np.float32) for where in ("cpu", "cuda"))
    assert len(cpu) > 300
    assert (cpu * gpu).sum(axis=1).min() > 0.999


def test_a_vector_does_not_depend_on_what_is_embedded_with_it(model_dir: str) -> None:
    chunks = np.random.default_rng(0).integers(1000, 20_000, (9000, 64)).astype(np.uint16)
    embedder = Embedder(open_model(model_dir), device.choose("cuda", "torch"))
    embedder.prepare()
    prepare = embedder.inputs(Tokenizer.load(model_dir, pad_id=0), "ids")()
    found = np.concatenate(list(embedder.vectors([prepare(chunks)])))
    other = np.random.default_rng(1).permutation(len(chunks))
    assert np.array_equal(found[other], np.concatenate(list(embedder.vectors([prepare(chunks[other])]))))


def test_rows_too_short_to_fill_a_batch_are_embedded_like_others(model_dir: str) -> None:
    """So many of them that a batch is full by rows, not by ids."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 12, 40_000).astype(np.int32)
    rows = packing.Rows(rng.integers(1000, 20_000, lengths.sum()).astype(np.int32), lengths)
    embedder = Embedder(open_model(model_dir), device.choose("cuda", "torch"))
    embedder.prepare()
    found = np.concatenate(list(embedder.vectors([rows]))).astype(np.float32)
    (wanted,) = backends.padded(embedder.model, "float16", "cuda", 0)(2**18)([rows])
    assert (found * wanted.astype(np.float32)).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("layers", ["own layers", "packed"])
@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_every_architecture_is_packed(
    name: str, layers: str, model_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    # Heads of a width that tensor cores can multiply.
    wide = {"hidden_size": 64} if "DistilBert" not in name else {"dim": 64}
    folder = tiny_models.write(tmp_path, name, AutoTokenizer.from_pretrained(model_dir), **wide)
    if layers == "packed":
        monkeypatch.setattr(backends, "own_layers", _unsupported)
    embedder = Embedder(open_model(folder), device.choose("cuda", "torch"))
    embedder.prepare()
    if layers == "packed" and name == "MPNet":
        assert embedder.how["way"] == "padded", "its positions are relative to the batch"
    else:
        assert layers in embedder.how["way"]


def _unsupported(*_: Any) -> Any:
    raise RuntimeError("left out")
