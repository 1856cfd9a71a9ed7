"""Tokenizers, real text and a way to call the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from counting import CountingStore
from nightly import First, Nights
from runs import Done, whole_run

from retro_ops.cli import main
from retro_ops.storage import store

Run = Callable[..., None]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs one stage in this process and checks its exit code (0 unless ``code`` is given)."""

    def run(*arguments: Any, code: int = 0) -> None:
        assert main([str(argument) for argument in arguments]) == code

    return run


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real text, with an empty and a blank document, short and long ones."""
    from pydoc_data.topics import topics

    real = [text for _, text in sorted(topics.items())][:40]
    return ["", " \n\t ", "One word.", *real, "naïve café — 東京 🎉"]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    """A sentence-transformer for tests that need any model: it loads in milliseconds. One layer of BERT, as wide as
    all-MiniLM-L6-v2, with random weights, and a WordPiece tokenizer trained on ``texts``. For tests of vectors, use
    ``model_dir``."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 1}
    return tiny_models.write(
        tmp_path_factory.mktemp("small"), "Bert", tiny_models.wordpiece(texts), longest=256, **sizes
    )


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> str:
    """A small Unigram tokenizer with T5's conventions: <pad>=0, </s>=1 appended, <unk>=2, no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["wordpiece", "t5"])
def tokenizer_dir(request: pytest.FixtureRequest, small_model: str, t5_dir: str) -> str:
    return small_model if request.param == "wordpiece" else t5_dir


@pytest.fixture
def nights(tmp_path: Path, texts: list[str], small_model: str) -> Nights:
    """Not built yet."""
    # Cut short, so that one more document is little against what there is.
    made = Nights(tmp_path / "corpus", str(tmp_path / "root"), [text[:1500] for text in texts[3:]], small_model)
    for name in ("train/b", "train/d", "train/f", "val/v"):
        made.put(name)
    return made


@pytest.fixture(scope="session")
def first_version(tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_model: str) -> First:
    folder = tmp_path_factory.mktemp("first")
    made = Nights(folder / "work/corpus", str(folder / "work/root"), [text[:1500] for text in texts[3:]], small_model)
    for name in ("train/b", "train/d", "train/f", "val/v"):
        made.put(name)
    made.first()
    shutil.copytree(folder / "work", folder / "saved")
    return First(made, folder / "saved")


@pytest.fixture
def built(first_version: First) -> Nights:
    """With its first version published."""
    return first_version.restored()


@pytest.fixture(scope="session")
def pristine(first_version: First, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A copy of the dataset, which no test changes."""
    settings = first_version.nights.settings
    corpus = first_version.saved / "corpus"
    flags = ("--corpus", f"{corpus}/train", "--validation-corpus", f"{corpus}/val", *settings[4:])
    return whole_run(str(tmp_path_factory.mktemp("pristine")), "d", "x", *flags)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> CountingStore:
    counting = CountingStore()
    monkeypatch.setattr(store, "_LOCAL", counting)
    return counting
