"""Our way of feeding a sentence-transformer, against its own encode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import Run, tokenize_flags, write_corpus

from retro_ops.compute import device
from retro_ops.compute.device import Device
from retro_ops.embedding import embedder as embedder_module
from retro_ops.embedding.embedder import Embedder
from retro_ops.embedding.model import open_model
from retro_ops.execution import report
from retro_ops.plan.parameters import Parameters
from retro_ops.stages import embed_chunks
from retro_ops.tokens import model_inputs, packing
from retro_ops.tokens.encoders import DisagreementError, Encoding, exact
from retro_ops.tokens.tokenizer import Tokenizer

CPU = Device("cpu", "asked for")
ROWS = 96


@pytest.fixture(scope="module")
def plain(model_dir: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_dir, device="cpu")


@pytest.fixture(scope="module")
def embedder(model_dir: str) -> Embedder:
    made = Embedder(open_model(model_dir), CPU)
    made.prepare()
    return made


def _chunks(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray[Any, Any]:
    """Some from each text, so that lengths vary; the first is of an empty one."""
    rows = []
    for ids in tokenizer.encode(texts):
        padded = ids + [tokenizer.pad_id] * (-len(ids) % 64)
        rows += [padded[start : start + 64] for start in range(0, min(len(padded), 256), 64)]
    return np.array(rows[:ROWS], np.uint16)


def _embed(embedder: Embedder, tokenizer: Tokenizer, chunks: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    found = np.concatenate(list(embedder.vectors([embedder.inputs(tokenizer, how)()(chunks)])))
    assert found.dtype == np.float16
    return found


def _cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((a.astype(np.float32) * b.astype(np.float32)).sum(axis=1))


def test_text_gives_what_sentence_transformers_gives(
    tokenizer_dir: str, texts: list[str], plain: Any, embedder: Embedder
) -> None:
    tokenizer = Tokenizer.load(tokenizer_dir, pad_id=0)
    chunks = _chunks(tokenizer, texts)
    from transformers import AutoTokenizer

    decoded = AutoTokenizer.from_pretrained(tokenizer_dir).batch_decode(chunks.tolist(), skip_special_tokens=True)
    assert tokenizer.decode(chunks) == decoded
    wanted = plain.encode(decoded, normalize_embeddings=True, show_progress_bar=False)
    found = _embed(embedder, tokenizer, chunks, "text")
    assert embedder.how["way"] == "padded"
    assert _cosines(found, wanted).min() > 0.999
    assert np.linalg.norm(found.astype(np.float32), axis=1) == pytest.approx(1, abs=0.002)


def test_ids_are_the_text_but_for_what_decoding_loses(model_dir: str, texts: list[str], embedder: Embedder) -> None:
    tokenizer = Tokenizer.load(model_dir, pad_id=0)
    chunks = _chunks(tokenizer, texts)
    text, ids = (embedder.inputs(tokenizer, how)()(chunks) for how in ("text", "ids"))
    same = [
        a.tolist() == b.tolist()
        for a, b in zip(np.split(text.ids, text.starts[1:-1]), np.split(ids.ids, ids.starts[1:-1]), strict=True)
    ]
    assert np.mean(same) > 0.3, "equal wherever no word is cut at the edge of a chunk"
    cosines = _cosines(_embed(embedder, tokenizer, chunks, "ids"), _embed(embedder, tokenizer, chunks, "text"))
    assert cosines.mean() > 0.97
    assert cosines[same].min() > 0.999


def test_ids_of_another_tokenizer_are_refused(t5_dir: str, embedder: Embedder) -> None:
    with pytest.raises(Exception, match="another tokenizer than the model's own"):
        embedder.inputs(Tokenizer.load(t5_dir), "ids")


def test_vectors_do_not_depend_on_the_number_of_cores(
    model_dir: str, texts: list[str], embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(model_dir, pad_id=0)
    chunks = _chunks(tokenizer, texts)
    found = _embed(embedder, tokenizer, chunks, "text")
    monkeypatch.setattr(device, "cores", lambda: 3)
    assert np.array_equal(found, _embed(embedder, tokenizer, chunks, "text"))


def test_a_model_that_gives_other_vectors_is_left_to_encode(
    model_dir: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Embedder(open_model(model_dir), CPU)
    monkeypatch.setattr(embedder_module, "LEAST_COSINE", 1.01)
    made.prepare()
    assert made.how["way"] == "encode"
    tokenizer = Tokenizer.load(model_dir, pad_id=0)
    chunks = _chunks(tokenizer, texts)[:8]
    wanted = made.model.network.encode(tokenizer.decode(chunks), normalize_embeddings=True, show_progress_bar=False)
    assert _cosines(_embed(made, tokenizer, chunks, "text"), wanted).min() > 0.999
    with pytest.raises(Exception, match="--embed-input ids does not work here"):
        made.inputs(tokenizer, "ids")


def test_the_stage_feeds_ids_on_request_and_reports_it(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", [text[:600] for text in texts[:8]])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, model_dir))
    output = tmp_path / "embeddings.npy"
    found = {}
    for how in ("text", "ids"):
        run("embed-chunks", tmp_path / "chunks.npy", output, "--model", model_dir, "--embed-input", how)
        made = report.read(str(tmp_path / "embeddings.report.json"))
        assert made is not None
        assert made["parameters"]["embed_input"] == how
        assert made["details"]["dtype"] == device.precision("cpu").dtype
        found[how] = np.load(output), made["digest"]
    assert found["text"][1] != found["ids"][1]
    assert not np.array_equal(found["text"][0], found["ids"][0])
    assert Parameters().embed_input == "text"


def test_a_package_that_gives_other_ids_is_dropped_and_the_shard_is_done_again(
    tmp_path: Path, run: Run, texts: list[str], model_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", [text[:600] for text in texts[:8]])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, model_dir))
    outputs = [tmp_path / "right" / "e.npy", tmp_path / "redone" / "e.npy"]
    run("embed-chunks", tmp_path / "chunks.npy", outputs[0], "--model", model_dir)
    calls = 0

    def wrong(encoding: Encoding) -> tuple[Any, str]:
        def encode(texts: list[str]) -> packing.Rows:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise DisagreementError("it gives other ids")
            return exact(encoding)(["another text"] * len(texts))

        return encode, "wrong 1.0"

    monkeypatch.setattr(model_inputs, "fastest", wrong)
    monkeypatch.setattr(embed_chunks, "BLOCK_ROWS", 8)
    model_inputs.reencoder.cache_clear()
    run("embed-chunks", tmp_path / "chunks.npy", outputs[1], "--model", model_dir)
    model_inputs.reencoder.cache_clear()
    assert calls == 2
    right, redone = (np.load(output) for output in outputs)
    assert _cosines(right, redone).min() > 0.9999
