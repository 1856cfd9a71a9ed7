"""Which shards are indexed and which are queried: two choices, from the plan to exported specs and through nights."""

import json
import re
from pathlib import Path

import faiss
import numpy as np
import pytest
from nightly import EXACT, Nights
from runs import Done, call, compare, whole_run
from samples import Run, write_corpus

from retro_ops.errors import BadInputError
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths, specs, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard, plan_from_json, plan_to_json
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy
from retro_ops.versions import history

CHOICE = ("--indexed", "[!cw]*", "--queried", "[!a]*")
"""``a`` is only indexed, ``c`` and ``w`` are only queried."""


def nights(folder: Path, texts: list[str], model: str) -> Nights:
    """Shards a, b, c of training and v, w of validation. ``c`` has a document of ``a``."""
    short = [text[:1500] for text in texts[3:]]
    made = Nights(folder / "corpus", str(folder / "root"), short, model, (*EXACT, *CHOICE))
    for name in ("train/a", "train/b", "val/v", "val/w"):
        made.put(name)
    write_corpus(made.folder / "train/c.jsonl", [short[0], *short[20:22]])
    return made


@pytest.fixture
def chosen(tmp_path: Path, texts: list[str], small_model: str) -> Nights:
    """Not built yet."""
    return nights(tmp_path, texts, small_model)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, texts: list[str], small_model: str) -> Nights:
    """Built once; no test changes it."""
    made = nights(tmp_path_factory.mktemp("built"), texts, small_model)
    made.first()
    return made


def vectors(done: Done, name: str) -> np.ndarray:
    reader = open_npy(paths.embeddings_uri(done.plan, name))
    return reader.rows(0, len(reader)).astype(np.float64)


def ids(done: Done, name: str, kind: str) -> np.ndarray:
    reader = open_npy(paths.chunks_files(done.plan, name)["chunks"].replace("chunks.npy", f"{kind}.npy"))
    return reader.rows(0, len(reader))


def spec_names(uris: list[str]) -> list[str]:
    return [uri.split("/")[-3] for uri in uris]


def test_each_choice_is_kept_from_plan_to_export(built: Nights, tmp_path: Path, run: Run) -> None:
    done = built.runs[0]
    plan = done.plan
    assert {s.name: (s.indexed, s.queried) for s in plan.shards} == {
        "a": (True, False),
        "b": (True, True),
        "c": (False, True),
        "v": (True, True),
        "w": (False, True),
    }
    ran = {
        stage: [s for of, s in stage_graph.tasks(plan, stage_graph.SHARD_STAGES) if of == stage] for stage in done.calls
    }
    assert ran["build-faiss-index"] == ["a", "b", "v"]
    assert ran["retrieve-neighbours"] == ["b", "c", "v", "w"]
    card = json.loads(store.read(paths.card_uri(plan, "json")))
    by_category = {row["category"]: (row["indexed_chunks"], row["queried_chunks"]) for row in card["contents"]}
    assert [by_category[name][0] > 0 for name in "abcvw"] == [True, True, False, True, False]
    assert [by_category[name][1] > 0 for name in "abcvw"] == [False, True, True, True, True]
    assert b"<th>indexed</th>" in store.read(paths.card_uri(plan, "html"))
    for split, indexed, queried in (("train", "ab", "bc"), ("val", "abv", "vw")):
        uri = paths.dataset_spec_uri(plan, split)  # type: ignore[arg-type]
        spec = specs.dataset_spec_from_json(store.read(uri), uri)
        shards = specs.index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
        assert "".join(spec_names([s.embeddings for s in shards])) == indexed
        assert "".join(spec_names([s.neighbours for s in spec.shards])) == queried
        total = sum(len(vectors(done, name)) for name in indexed)
        assert faiss.read_index(spec.faiss_index).ntotal == total
        of_split = json.loads(store.read(paths.card_uri(plan, "json")))["quality"][split]
        assert of_split["recall"] == 1
        assert of_split["rows"] == sum(len(vectors(done, name)) for name in queried)
        for name in queried:
            check_neighbours(done, name, indexed)
    with pytest.raises(BadInputError, match="not indexed"):
        paths.partial_index_uri(plan, "c")
    with pytest.raises(BadInputError, match="not queried"):
        paths.neighbours_uri(plan, "a")
    to = tmp_path / "exported"
    run("export", "--root", built.root, "--dataset", "d", "--to", to)
    run("validate", "--spec", to / "train.data.spec.json", to / "val.data.spec.json")
    names = {path.name for path in to.rglob("*.npy")}
    assert {f"{name}.chunks.npy" for name in "abcvw"} < names
    assert {f"{name}.embeddings.npy" for name in "abcvw"} < names
    assert {name for name in names if name.endswith("neighbours.npy")} == {f"{n}.neighbours.npy" for n in "bcvw"}
    files = set(history.files(built.series().folder()))
    assert paths.embeddings_uri(plan, "c") in files, "or prune would take it"


def check_neighbours(done: Done, name: str, indexed: str) -> None:
    """Brute force, stated again: the nearest of what is indexed, without chunks of a document of the same content."""
    bank = np.concatenate([vectors(done, other) for other in indexed])
    owners = np.concatenate([ids(done, other, "chunks.document_ids") for other in indexed])
    own = ids(done, name, "chunks.document_ids")
    found = open_npy(paths.neighbours_uri(done.plan, name))
    rows = found.rows(0, len(found))
    distances = ((vectors(done, name)[:, None] - bank[None]) ** 2).sum(axis=2)
    distances[own[:, None] == owners[None]] = np.inf
    expected = np.argsort(distances, axis=1, kind="stable")[:, : rows.shape[1]]
    np.testing.assert_allclose(
        np.take_along_axis(distances, rows, axis=1), np.take_along_axis(distances, expected, axis=1), atol=1e-9
    )


def test_a_copy_of_an_indexed_document_is_not_its_own_neighbour(built: Nights) -> None:
    done = built.runs[0]
    shared = np.isin(ids(done, "c", "chunks.document_ids"), ids(done, "a", "chunks.document_ids"))
    assert shared.any()
    made = report.require(paths.report_uri(done.plan, "retrieve-neighbours", "c"), "it")
    assert made["details"]["same_document_filter"]
    assert made["details"]["removed"]["same_document"] > 0


def test_status_shows_which_stages_do_not_run(built: Nights, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    run("status", "--root", built.root, "--dataset", "d", "--all")
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    rows = {words[0]: words for words in lines if words and words[0] in "abcvw"}
    assert rows["a"][-1] == "-"
    assert rows["c"][-3] == "-"
    assert "-" not in rows["b"]


NIGHTS = ("add", "queried", "indexed", "neither choice", "remove")


def test_after_every_night_all_is_as_if_built_from_scratch(chosen: Nights) -> None:
    chosen.first()
    merged = 0
    for night in NIGHTS:
        flags: tuple[str, ...] = ()
        if night == "add":
            chosen.put("train/d")
        elif night == "queried":  # ``a`` gets neighbours, of which the version has none.
            flags = ("--queried", "*")
        elif night == "indexed":  # ``c`` comes into the index in the middle, so ids move.
            flags = ("--indexed", "[!w]*")
        elif night == "neither choice":
            flags = ("--queried", "[!ab]*", "--indexed", "[!dw]*")
        else:
            chosen.remove("train/a")
        done = chosen.refresh(*flags)
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        kept = dict(zip(chosen.flags[::2], chosen.flags[1::2], strict=True)) | given
        chosen.flags = tuple(word for pair in kept.items() for word in pair)
        scratch = chosen.scratch()
        assert done.plan.shards == scratch.plan.shards
        equal, chunks = compare(done, scratch)
        assert chunks > 30
        assert equal == dict.fromkeys(equal, 1.0), night
        assert done.plan.base is not None
        call("validate", "--plan", done.plan_uri)
        for shard in stage_graph.shards_of(done.plan, "retrieve-neighbours"):
            made = report.require(paths.report_uri(done.plan, "retrieve-neighbours", shard.name), "it")
            merged += made["details"].get("updated", {}).get("merged_rows", 0)
    assert merged > 0


def test_only_validation_may_be_queried(chosen: Nights) -> None:
    """An index for evaluation alone: no training spec, and a refresh has no training index to extend."""
    chosen.flags = (*EXACT, "--queried", "[vw]")
    done = chosen.first()
    assert done.plan.splits() == ("val",)
    assert not store.exists(paths.dataset_spec_uri(done.plan, "train"))
    chosen.put("train/d")
    done = chosen.refresh()
    assert done.plan.base is not None
    equal, _ = compare(done, chosen.scratch())
    assert equal == dict.fromkeys(equal, 1.0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--indexed", "x*"), "no shard matches 'x\\*' in 'indexed'"),
        (("--indexed", "a", "--queried", "b,v"), "2 shards are neither indexed nor queried: c, w"),
        (("--indexed", "[vw]"), "no training shard is indexed"),
        (("--queried", "[abc]"), "no validation shard is queried"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    chosen: Nights, flags: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = paths.plan_uri(chosen.root, "d", "x")
    settings = (*chosen.corpus, "--tokenizer", chosen.model, "--model", chosen.model)
    with pytest.raises(Exception, match="65"):
        call("plan", "--root", chosen.root, "--dataset", "d", "--output", uri, *settings, *flags)
    assert re.search(said, capfd.readouterr().err)
    assert not store.exists(uri)


def test_a_plan_with_an_idle_shard_is_not_read() -> None:
    shard = Shard("a", "train", (), indexed=False, queried=False)
    plan = Plan("d", "/r", Parameters(), Identity("t", 9, 0, "m", 8), (shard,))
    with pytest.raises(BadInputError, match="'a' is neither indexed nor queried"):
        plan_from_json(plan_to_json(plan), "plan.json")


def test_the_seed_profile_knows_no_document_of_a_shard_that_is_not_indexed(chosen: Nights) -> None:
    """Like the original, whose filter compares the path of the query."""
    done = whole_run(chosen.root, "seed", "x", *chosen.settings, "--profile", "seed", "--index-type", "IVF4,Flat")
    made = {
        name: report.require(paths.report_uri(read_plan(done.plan_uri), "retrieve-neighbours", name), "it")
        for name in "bc"
    }
    assert made["b"]["details"]["same_document_filter"]
    assert not made["c"]["details"]["same_document_filter"]
