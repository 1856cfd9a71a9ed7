"""No code in the folder of a model or a tokenizer runs, however the folder asks for it and standard input answers."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from retro_ops.embedding.model import open_model
from retro_ops.errors import ConfigurationError, RetroError
from retro_ops.tokens.tokenizer import Tokenizer

EVIL = "evil.Evil"


@pytest.fixture(scope="module")
def intact(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(small_model)
    return Path(tiny_models.write(tmp_path_factory.mktemp("intact"), "Bert", words, dense=24))


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))


def pickled(path: Path, proof: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(proof)!r}, 'w').write('ran')",)

    path.write_bytes(pickle.dumps(Runs()))


def module(folder: Path, number: int, kind: str, path: str | None = None) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[number]["type"] = kind
    modules[number]["path"] = modules[number]["path"] if path is None else path
    (folder / "modules.json").write_text(json.dumps(modules))


def auto_map(folder: Path, proof: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": EVIL, "AutoConfig": EVIL}, model_type="evil")


def auto_map_of_another_repository(folder: Path, proof: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": f"other/repo--{EVIL}"}, model_type="evil")


def auto_map_of_a_known_model(folder: Path, proof: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": EVIL, "AutoConfig": EVIL})


def trust_in_its_own_settings(folder: Path, proof: Path) -> None:
    auto_map(folder, proof)
    trust = {"trust_remote_code": True}
    change(folder / "sentence_bert_config.json", model_args=trust, config_args=trust, tokenizer_args=trust)
    change(folder / "config.json", **trust)
    change(folder / "config_sentence_transformers.json", **trust)


def auto_map_of_the_tokenizer(folder: Path, proof: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, EVIL]}, tokenizer_class="Evil")


def auto_map_without_tokenizer_json(folder: Path, proof: Path) -> None:
    auto_map_of_the_tokenizer(folder, proof)
    (folder / "tokenizer.json").unlink()


def class_of_the_tokenizer(folder: Path, proof: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=EVIL, processor_class=EVIL)


def auto_map_of_the_processor(folder: Path, proof: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        change(folder / name, auto_map={"AutoProcessor": EVIL, "AutoFeatureExtractor": EVIL}, processor_class="Evil")


def template_of_the_tokenizer(folder: Path, proof: Path) -> None:
    code = f"{{{{ cycler.__init__.__globals__.os.system('touch {proof}') }}}}"
    change(folder / "tokenizer_config.json", chat_template=code)
    (folder / "chat_template.jinja").write_text(code)


def pickled_vocabulary(folder: Path, proof: Path) -> None:
    (folder / "tokenizer.json").unlink()
    for name in ("tokenizer.pkl", "vocab.pkl", "spiece.model", "vocab.txt"):
        pickled(folder / name, proof)


def module_of_the_folder(folder: Path, proof: Path) -> None:
    module(folder, 1, EVIL)


def module_of_the_standard_library(folder: Path, proof: Path) -> None:
    module(folder, 1, "runpy.run_path", "evil.py")


def module_beside_the_folder(folder: Path, proof: Path) -> None:
    shutil.copytree(folder, folder / "inner")
    module(folder, 1, EVIL, "../tampered/inner")


def activation(folder: Path, proof: Path) -> None:
    change(folder / "2_Dense/config.json", activation_function=EVIL)


def activation_of_the_standard_library(folder: Path, proof: Path) -> None:
    change(folder / "2_Dense/config.json", activation_function="os.system")


def router(folder: Path, proof: Path) -> None:
    module(folder, 1, "sentence_transformers.models.Router")
    change(folder / "1_Pooling/router_config.json", types={"": EVIL}, structure={"query": [""]}, parameters={})


def word_embeddings(folder: Path, proof: Path) -> None:
    module(folder, 0, "sentence_transformers.models.WordEmbeddings")
    change(folder / "wordembedding_config.json", tokenizer_class=EVIL, update_embeddings=False, max_seq_length=9)
    for name in ("pytorch_model.bin", "whitespacetokenizer_config.json"):
        pickled(folder / name, proof)


def pickled_weights(folder: Path, proof: Path) -> None:
    for weights in list(folder.rglob("*.safetensors")):
        weights.unlink()
        pickled(weights.with_name("pytorch_model.bin"), proof)


def pickled_shards(folder: Path, proof: Path) -> None:
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model-00001-of-00001.bin", proof)
    names = {"weight_map": {"embeddings.word_embeddings.weight": "pytorch_model-00001-of-00001.bin"}}
    change(folder / "pytorch_model.bin.index.json", metadata={}, **names)


def pickled_weights_of_a_module(folder: Path, proof: Path) -> None:
    (folder / "2_Dense/model.safetensors").unlink()
    pickled(folder / "2_Dense/pytorch_model.bin", proof)


def pickle_called_safetensors(folder: Path, proof: Path) -> None:
    pickled(folder / "model.safetensors", proof)


def joblib_and_other_pickles(folder: Path, proof: Path) -> None:
    for name in ("model.joblib", "model.pkl", "optimizer.pt", "training_args.bin", "tf_model.h5", "flax_model.msgpack"):
        pickled(folder / name, proof)


def adapter(folder: Path, proof: Path) -> None:
    of = {"base_model_class": "Evil", "parent_library": "evil"}
    change(folder / "adapter_config.json", peft_type="LORA", auto_mapping=of, base_model_name_or_path=str(folder))
    pickled(folder / "adapter_model.bin", proof)


def kernel_of_attention(folder: Path, proof: Path) -> None:
    change(folder / "config.json", attn_implementation="other/kernel:evil", _attn_implementation="other/kernel")


def quantiser(folder: Path, proof: Path) -> None:
    change(folder / "config.json", quantization_config={"quant_method": "evil", "modules": EVIL, "trust": True})


CONSTRUCTIONS: list[Callable[[Path, Path], None]] = [
    *(auto_map, auto_map_of_another_repository, auto_map_of_a_known_model, trust_in_its_own_settings),
    *(auto_map_of_the_tokenizer, auto_map_without_tokenizer_json, class_of_the_tokenizer, auto_map_of_the_processor),
    *(template_of_the_tokenizer, pickled_vocabulary, module_of_the_folder, module_of_the_standard_library),
    *(module_beside_the_folder, activation, activation_of_the_standard_library, router, word_embeddings),
    *(pickled_weights, pickled_shards, pickled_weights_of_a_module, pickle_called_safetensors),
    *(joblib_and_other_pickles, adapter, kernel_of_attention, quantiser),
]

REFUSED = {auto_map, module_of_the_folder, activation, pickled_weights, pickled_shards, pickled_weights_of_a_module}
"""Those that must end in an error, since the vectors would be others without the code."""


@pytest.mark.parametrize("construction", CONSTRUCTIONS, ids=lambda construction: construction.__name__)
def test_no_code_in_a_folder_runs(
    construction: Callable[[Path, Path], None], intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, proof = tmp_path / "tampered", tmp_path / "proof"
    shutil.copytree(intact, folder)
    evil = (
        f"open({str(proof)!r}, 'w').write('ran')\nclass Evil:\n    def __init__(self, *a, **k): pass\n    load = Evil\n"
    )
    (folder / "evil.py").write_text(evil)
    construction(folder, proof)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if construction in REFUSED:
        with pytest.raises(ConfigurationError) as error:
            open_model(str(folder))
        assert "--trust-remote-code" in str(error.value) or "pickled" in str(error.value)
    for load in (open_model, Tokenizer.load):
        with suppress(RetroError):  # Anything else would be a traceback.
            load(str(folder))
    assert not proof.exists()
