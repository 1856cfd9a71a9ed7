"""The original's instructions, steps 1 to 6 with the first word changed, on real text."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from samples import Run, write_corpus

INDEX_SPEC = """[
    {
        "chunks": "chunks.npy",
        "seq2chunk": "seq2chunk.npy",
        "chunk2seq": "chunk2seq.npy",
        "embeddings": "chunks.embeddings.npy"
    }
]
"""
DATA_SPEC = """{
	"shards": [
		{
			"chunks": "chunks.npy",
			"seq2chunk": "seq2chunk.npy",
			"chunk2seq": "chunk2seq.npy",
			"neighbours": "chunks.neighbours.npy"
		}
	],
	"neighbours": {
		"faiss_index": "data.index",
		"index_spec": "index.spec.json"
	}
}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, run: Run, texts: list[str], model_dir: str) -> Path:
    """The outputs of the six steps. Beyond the original's flags: the local models, and an index for few chunks."""
    folder = tmp_path_factory.mktemp("readme") / "MyDataset"
    data = write_corpus(folder.parent / "data.jsonl", [texts[0], *(text[:1500] for text in texts[1:25])]).read_bytes()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        _six_steps(run, folder, model_dir)
    return folder


@pytest.fixture
def dataset(tmp_path: Path, built: Path) -> Path:
    """A copy, so each test also shows that a dataset may be moved."""
    return Path(shutil.copytree(built, tmp_path / "moved"))


def _six_steps(run: Run, folder: Path, model_dir: str) -> None:
    run(
        *("tokenize-and-chunk", "--chunks-out", folder / "chunks.npy", "--seq2chunk-index-out"),
        *(folder / "seq2chunk.npy", "--chunk2seq-index-out", folder / "chunk2seq.npy", "--chunk-size", 64),
        *("--max-chunks", 10_000_000, "--verbose", "--tokenizer", model_dir),
    )
    embeddings = folder / "chunks.embeddings.npy"
    run("embed-chunks", folder / "chunks.npy", embeddings, "--batch-size", 256, "--model", model_dir)
    spec, trained, filled = folder / "index.spec.json", folder / "IVF4,PQ32x4.index", folder / "data.index"
    spec.write_text(INDEX_SPEC)
    train = ("--max-training-vectors", 131072 * 256, "--index-type", "IVF4,PQ32x4", "--output", trained)
    run("train-faiss-index", "--spec", spec, *train)
    run("build-faiss-index", "--spec", spec, "--trained-index", trained, "--output-index", filled, "--shard-index")
    run(
        *("retrieve-neighbours", "--query-embeddings", embeddings, "--query-chunk2seq", folder / "chunk2seq.npy"),
        *("--neighbours-output", folder / "chunks.neighbours.npy", "--index", filled, "--index-spec", spec),
        *("--num-neighbours", 4, "--shard-index"),
    )
    (folder / "data.spec.json").write_text(DATA_SPEC)


def test_the_steps_give_the_files_described_and_validate_finds_them_sound(
    dataset: Path, run: Run, texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    chunks, starts, owners, embeddings, neighbours = (
        np.load(dataset / f"{name}.npy")
        for name in ("chunks", "seq2chunk", "chunk2seq", "chunks.embeddings", "chunks.neighbours")
    )
    total = len(chunks)
    assert [a.dtype.name for a in (chunks, starts, owners, embeddings, neighbours)] == [
        *("uint16", "int64", "int32", "float16", "int64")
    ]
    assert (chunks.shape, starts.shape, owners.shape) == ((total, 64), (25,), (total,))
    assert (embeddings.shape, neighbours.shape) == ((total, 384), (total, 4))
    assert (owners[neighbours] != owners[:, None]).all()
    run("validate", "--spec", dataset / "data.spec.json")
    assert "validate: passed" in capfd.readouterr().err
    changed = bytearray((dataset / "chunks.npy").read_bytes())
    changed[-1] ^= 1
    (dataset / "chunks.npy").write_bytes(changed)
    run("validate", "--spec", dataset / "data.spec.json", code=65)
    assert f"{dataset}/chunks.npy" in capfd.readouterr().err
    (dataset / "data.spec.json").write_text("{")
    run("validate", "--spec", dataset / "data.spec.json", code=65)
    assert "data.spec.json is not JSON" in capfd.readouterr().err


def test_embeddings_are_those_of_the_decoded_text(dataset: Path, model_dir: str) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    chunks, found = np.load(dataset / "chunks.npy"), np.load(dataset / "chunks.embeddings.npy").astype(np.float32)
    rows = np.linspace(0, len(chunks) - 1, 40).astype(int)
    texts = AutoTokenizer.from_pretrained(model_dir).batch_decode(chunks[rows].tolist(), skip_special_tokens=True)
    expected = SentenceTransformer(model_dir, device="cpu").encode(texts, normalize_embeddings=True)
    assert ((found[rows] * expected).sum(axis=1) > 0.999).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)


def test_show_prints_chunks_with_their_neighbours(dataset: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("show", "--spec", dataset / "data.spec.json", "--rows", 2)
    said = capfd.readouterr().out
    assert said.count("    1. ") == 2
    assert said.count("    4. ") == 2


def test_specs_written_by_command_equal_those_written_by_hand(dataset: Path, run: Run) -> None:
    files = {name: dataset / f"{name}.npy" for name in ("chunks", "seq2chunk", "chunk2seq")}
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    embeddings, neighbours = dataset / "chunks.embeddings.npy", dataset / "chunks.neighbours.npy"
    run("write-specs", *flags, "--embeddings", embeddings, "--index-spec", dataset / "i.json")
    written = ("--index-spec", dataset / "index.spec.json", "--data-spec", dataset / "d.json")
    run("write-specs", *flags, "--neighbours", neighbours, "--faiss-index", dataset / "data.index", *written)
    assert json.loads((dataset / "i.json").read_text()) == json.loads(INDEX_SPEC)
    assert json.loads((dataset / "d.json").read_text()) == json.loads(DATA_SPEC)
