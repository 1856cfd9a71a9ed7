"""The stages' way through a GPU, with torch told to compute on the CPU: the wiring. tests/gpu has the real one."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from counting import CountingStore
from nightly import Nights
from runs import Done
from samples import Run

from retro_ops.compute import device
from retro_ops.execution import report
from retro_ops.index import faiss_index, filling, training
from retro_ops.index.faiss_index import Lists
from retro_ops.plan import paths, sample_parts
from retro_ops.plan.specs import IndexShard, index_spec_to_json
from retro_ops.search import gpu_search, open_index
from retro_ops.search.gpu_search import Span
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy

ROWS = 3000


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "choose", lambda requested, _: device.Device(requested, "pretended"))
    for module in (filling, training, open_index):
        monkeypatch.setattr(module, "prepare", lambda _: "cpu")
        monkeypatch.setattr(module, "gpus", lambda: ["cpu:0"])
    monkeypatch.setattr(gpu_search, "capacity", lambda _: 10**8)


@pytest.fixture
def pretended_search(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For stages of a plan: overrides the device of the plan."""
    monkeypatch.setattr(device, "choose", lambda *_: device.Device("cuda", "pretended"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((60, 32))[rng.integers(60, size=ROWS)] + 0.7 * rng.standard_normal((ROWS, 32))
    np.save(tmp_path / "embeddings.npy", (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16))
    np.save(tmp_path / "chunk2seq.npy", (np.arange(ROWS) // 10).astype(np.int32))
    shard = IndexShard(*(str(tmp_path / f"{name}.npy") for name in ("chunks", "seq2chunk", "chunk2seq", "embeddings")))
    (tmp_path / "index.spec.json").write_text(index_spec_to_json([shard], str(tmp_path / "index.spec.json")))
    return tmp_path


def built(run: Run, folder: Path, where: str) -> Path:
    spec, trained, filled = folder / "index.spec.json", folder / f"{where}.trained.index", folder / f"{where}.index"
    to = ("--device", where)
    run("train-faiss-index", "--spec", spec, "--output", trained, "--index-type", "IVF16,PQ8", *to)
    run("build-faiss-index", "--spec", spec, "--trained-index", trained, "--output-index", filled, *to)
    return filled


def retrieved(run: Run, folder: Path, index: Path, where: str, *options: str) -> np.ndarray[Any, Any]:
    output = folder / f"{where}{''.join(options)}.neighbours.npy"
    run(
        *("retrieve-neighbours", "--query-embeddings", folder / "embeddings.npy", "--index", index),
        *("--query-chunk2seq", folder / "chunk2seq.npy", "--index-spec", folder / "index.spec.json"),
        *("--neighbours-output", output, "--device", where, *options),
    )
    return np.asarray(np.load(output))


@pytest.mark.usefixtures("pretended")
def test_a_dataset_by_gpu_is_one_by_cpu(run: Run, folder: Path) -> None:
    by_cpu, by_gpu = (built(run, folder, where) for where in ("cpu", "cuda"))
    indexes = [faiss.read_index(str(path)) for path in (by_cpu, by_gpu)]
    assert [index.ntotal for index in indexes] == [ROWS, ROWS]
    vectors = np.load(folder / "embeddings.npy")
    errors = [faiss_index.quantisation_error(index, vectors) for index in indexes]
    assert errors[0] == pytest.approx(errors[1], rel=0.03)
    exact = [retrieved(run, folder, by_cpu, where, "--target-recall", "1") for where in ("cpu", "cuda")]
    np.testing.assert_array_equal(*exact)
    found = retrieved(run, folder, by_gpu, "cuda")
    assert (found[:, :, None] == exact[0][:, None, :]).any(axis=1).mean() > 0.93
    said = report.read(str(folder / "cuda.neighbours.report.json"))
    assert said is not None
    assert said["details"]["search"]["searched"] == "vectors"
    assert said["device"]["why"] == "pretended"


PARTS, RANGES = 10, 3


@pytest.fixture(scope="module", params=[(), ("--max-overlap", "0.5")], ids=["plain", "filtered"])
def built_by_cpu(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_model: str, request: pytest.FixtureRequest
) -> Done:
    folder = tmp_path_factory.mktemp("built")
    flags = ("--index-type", "IVF8,Flat", "--nprobe", "3", "--retrieval-margin", "4000", "--min-recall", "0")
    made = Nights(folder / "corpus", str(folder / "root"), texts, small_model, (*flags, *request.param))
    for name in ("train/a", "train/b", "val/v"):
        made.put(name)
    return made.first()


class Searched:
    """Runs the search of a plan again."""

    def __init__(self, made: Done, run: Run) -> None:
        self.plan, self.uri, self._run = made.plan, made.plan_uri, run
        self.names = [shard.name for shard in made.plan.shards]

    def tune(self, code: int = 0) -> None:
        self._forget("tune-search", None)
        self._run("tune-search", "--plan", self.uri, code=code)

    def retrieve(self, *flags: str, code: int = 0) -> list[bytes]:
        for name in self.names:
            self._forget("retrieve-neighbours", name)
        self._run("retrieve-neighbours", "--plan", self.uri, "--shard", ",".join(self.names), *flags, code=code)
        return [] if code else [store.read(paths.neighbours_uri(self.plan, name)) for name in self.names]

    def counts(self) -> list[dict[str, int]]:
        uris = [paths.report_uri(self.plan, "retrieve-neighbours", name) for name in self.names]
        return [report.require(uri, "it")["details"]["removed"] for uri in uris]

    def tuned(self) -> dict[str, Any]:
        self.tune()
        return dict(report.require(paths.report_uri(self.plan, "tune-search"), "it")["details"])

    def quality(self) -> dict[str, Any]:
        self._forget("describe", None)
        self._run("describe", "--plan", self.uri)
        return dict(json.loads(store.read(paths.card_uri(self.plan, "json")))["quality"])

    def _forget(self, stage: str, name: str | None) -> None:
        uri = paths.report_uri(self.plan, stage, name)
        if store.exists(uri):
            store.at(uri).delete(uri)


def divided(parts: int, lists: Lists, dimension: int, devices: list[str], capacity: int) -> list[Span]:
    cuts = [len(lists.ids) * number // parts for number in range(parts + 1)]
    return [Span(*cut, devices[0]) for cut in pairwise(cuts)]


def test_parts_of_the_vectors_give_what_all_of_them_give_and_no_index_is_read(
    built_by_cpu: Done,
    run: Run,
    counted: CountingStore,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched, found = Searched(built_by_cpu, run), []
    request.getfixturevalue("pretended_search")
    for parts in (1, PARTS):
        monkeypatch.setattr(gpu_search, "spans", partial(divided, parts))
        counted.bytes.clear()
        searched.tune()
        found.append(searched.retrieve())
        assert not [uri for uri in counted.bytes if uri.endswith(("train.index", "val.index", "partial.index"))]
    assert found[0] == found[1]


def test_a_grid_gives_what_one_search_gives(
    built_by_cpu: Done,
    run: Run,
    counted: CountingStore,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    searched = Searched(built_by_cpu, run)
    request.getfixturevalue("pretended_search")
    searched.tune()
    expected, removed = searched.retrieve(), searched.counts()
    shape = f"{PARTS}x{RANGES}"
    capfd.readouterr()
    run("search-parts", "--plan", searched.uri, "--list", "--grid", shape)
    names = capfd.readouterr().out.split()
    assert len(names) > PARTS * RANGES
    for name in names[1:]:
        run("search-parts", "--plan", searched.uri, "--cell", name)
    searched.retrieve("--grid", shape, code=65)
    assert f"search-parts --cell {names[0]}" in capfd.readouterr().err
    run("search-parts", "--plan", searched.uri, "--cell", ",".join(names))
    assert capfd.readouterr().err.count("already done") == len(names) - 1
    assert searched.retrieve("--grid", shape) == expected
    assert searched.counts() == removed


SAMPLE_PARTS = ("0-of-3", "1-of-3", "2-of-3")


def test_samples_searched_in_parts_give_the_same_tuning_and_the_same_card(
    built_by_cpu: Done,
    run: Run,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On a CPU and on a GPU."""
    searched = Searched(built_by_cpu, run)
    uris = [paths.embeddings_uri(searched.plan, name) for name in searched.names]
    vectors = sum(len(open_npy(uri)) for uri in uris)
    for where in ("cpu", "cuda"):
        if where == "cuda":
            request.getfixturevalue("pretended_search")
        monkeypatch.setattr(sample_parts, "LARGE", vectors + 1)
        tuned, quality = searched.tuned(), searched.quality()
        monkeypatch.setattr(sample_parts, "LARGE", vectors)
        monkeypatch.setattr(sample_parts, "PART_VECTORS", -(-vectors // len(SAMPLE_PARTS)))
        store.at(searched.uri).delete_folder(paths.search_folder(searched.uri))
        capfd.readouterr()
        searched.tune(code=65)
        assert "search-samples --part 0-of-3" in capfd.readouterr().err
        run("search-samples", "--plan", searched.uri, "--list")
        assert tuple(capfd.readouterr().out.split()) == SAMPLE_PARTS
        run("search-samples", "--plan", searched.uri, "--part", ",".join(SAMPLE_PARTS))
        assert searched.tuned() == tuned
        assert searched.quality() == quality
