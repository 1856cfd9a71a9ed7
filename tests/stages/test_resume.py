"""A stage that was killed within a shard resumes after its last block and writes the same bytes."""

import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from samples import Run, synthetic_shard, tokenize_flags, write_corpus, write_index_spec

from retro_ops.execution import checkpoints, report
from retro_ops.plan import paths
from retro_ops.stages import embed_chunks, retrieve_neighbours, tokenize_and_chunk
from retro_ops.storage import store

KILLED_AT = 0.6

DRIVER = """
import importlib, json, sys
from retro_ops import cli, progress
from retro_ops.execution import checkpoints
checkpoints.COMMIT_SECONDS = progress.INTERVAL_S = 0
module = importlib.import_module(sys.argv[1])
for name, value in json.loads(sys.argv[2]).items():
    setattr(module, name, value)
sys.exit(cli.main(sys.argv[3:]))
"""
"""A block as often as there can be one, and a line of progress for each step."""


@dataclass(frozen=True)
class Case:
    """A stage by hand. ``arguments``: of its outputs' folder; ``rows``: the array of a block that has one for each row
    of progress; ``block_rows``: rows of the largest block; ``constants``: of its module, so that blocks are small;
    ``records``: of all blocks, where they count more than rows."""

    module: Any
    arguments: Callable[[str], Sequence[object]]
    report: str
    rows: str
    total: int
    block_rows: int
    constants: Mapping[str, int]
    records: int = 0


def _unfinished(folder: str) -> list[str]:
    return [uri for uri in store.at(folder).list(folder) if ".unfinished-" in uri]


def _kill(case: Case, folder: str, log: Path) -> int:
    """Starts the stage and kills it when it has committed 60 % of its blocks. Rows that it had computed, as it said."""
    wanted = math.ceil(KILLED_AT * max(case.total, case.records) / case.block_rows) + 1
    driver = [sys.executable, "-c", DRIVER, case.module.__name__, json.dumps(case.constants)]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*driver, *map(str, case.arguments(folder))], stderr=stderr)
        while len(_unfinished(folder)) < wanted:
            assert process.poll() is None, log.read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    said = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return int([line["done"] for line in said if line.get("event") == "progress"][-1])


def _outputs(case: Case, folder: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Report, and every other object of the folder by name."""
    found = report.read(f"{folder}/{case.report}")
    assert found is not None
    names = [uri.removeprefix(f"{folder}/") for uri in store.at(folder).list(folder)]
    return found, {name: store.read(f"{folder}/{name}") for name in names if name != case.report}


def _check_resumes(case: Case, run: Run, calm: str, stormy: str, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    for name, value in case.constants.items():
        patch.setattr(case.module, name, value)
    run(*case.arguments(calm))
    computed = _kill(case, stormy, tmp_path / "log")
    committed = _unfinished(stormy)
    kept = sum(len(part[case.rows]) for part in checkpoints.Checkpoints(committed[0].rpartition("/")[0]).parts())
    assert KILLED_AT * case.total <= kept < case.total
    assert 0 <= computed - kept <= case.block_rows, "no more than one block was lost"

    added = []
    add = checkpoints.Checkpoints.add

    def counted(unfinished: checkpoints.Checkpoints, part: checkpoints.Part, end: int) -> None:
        added.append(len(part[case.rows]))
        add(unfinished, part, end)

    patch.setattr(checkpoints.Checkpoints, "add", counted)
    patch.setattr(checkpoints, "COMMIT_SECONDS", 0)
    run(*case.arguments(stormy))
    assert sum(added) == case.total - kept, "nothing that was committed was computed again"
    (undisturbed, calm_bytes), (resumed, stormy_bytes) = _outputs(case, calm), _outputs(case, stormy)
    assert list(calm_bytes) == list(stormy_bytes), "and no block is left"
    for name, data in calm_bytes.items():
        assert data == stormy_bytes[name], name
    assert resumed["counts"] == undisturbed["counts"]
    assert resumed["details"].pop("resumed_at") >= kept
    assert resumed["details"] == undisturbed["details"]


def _records(texts: list[str]) -> list[Any]:
    """With sidecar keys, and bad records: first, last, next to each other."""
    bad = {"no": "text"}
    records: list[Any] = [bad]
    for number, text in enumerate(texts):
        records.append({"text": text, "id": number, "tags": ["é", "\u2028", "\x85"]})
        records += [bad] * (number % 13 // 11)
    return [*records, bad]


@pytest.mark.parametrize("processes", [1, 2])
def test_tokenize_and_chunk_killed_at_60_percent(
    s3: str,
    tmp_path: Path,
    run: Run,
    texts: list[str],
    t5_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
) -> None:
    documents = [text[:3000] for text in texts] * 25
    records = _records(documents)
    corpus = write_corpus(tmp_path / "corpus/d.jsonl", records)
    written = Path(corpus).read_text().split("\n")  # Not at other line separators, which texts hold.
    lines = [line if number % 3 else f"\n \n{line}" for number, line in enumerate(written)]
    Path(corpus).write_text("\n".join(lines))  # With blank lines, which count for the place to resume at.
    case = Case(
        tokenize_and_chunk,
        lambda folder: ("tokenize-and-chunk", corpus, *tokenize_flags(folder, t5_dir)),
        "chunks.report.json",
        "seq2chunk",
        len(documents),
        10,
        {"BATCH_DOCUMENTS": 10, "PARALLEL_BYTES": 0 if processes > 1 else 2**40},
        len(records) * 5 // 3,
    )
    folders = (f"{tmp_path}/calm", f"{tmp_path}/stormy") if processes > 1 else (f"{s3}/t/calm", f"{s3}/t/stormy")
    _check_resumes(case, run, *folders, tmp_path, monkeypatch)


def test_embed_chunks_killed_at_60_percent(
    s3: str, tmp_path: Path, run: Run, texts: list[str], small_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "d.jsonl", [text[:1500] for text in texts] * 2)
    run("tokenize-and-chunk", corpus, *tokenize_flags(tmp_path, small_model), "--max-chunks", 200)
    made = report.read(str(tmp_path / "chunks.report.json"))
    assert made is not None
    case = Case(
        embed_chunks,
        lambda folder: ("embed-chunks", tmp_path / "chunks.npy", f"{folder}/embeddings.npy", "--model", small_model),
        "embeddings.report.json",
        "embeddings",
        made["counts"]["chunks"],
        16,
        {"BLOCK_ROWS": 16},
    )
    _check_resumes(case, run, f"{s3}/embed/calm", f"{s3}/embed/stormy", tmp_path, monkeypatch)


def test_retrieve_neighbours_killed_at_60_percent(
    s3: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch that is searched at once is four steps of progress: blocks are committed only between batches."""
    shard = synthetic_shard(tmp_path / "a", [150, 2] * 40, 0)
    spec = write_index_spec(tmp_path / "spec.json", [shard])
    index = tmp_path / "filled.index"
    run("train-faiss-index", "--spec", spec, "--index-type", "IVF8,Flat", "--output", tmp_path / "t.index")
    run("build-faiss-index", "--spec", spec, "--trained-index", tmp_path / "t.index", "--output-index", index)
    case = Case(
        retrieve_neighbours,
        lambda folder: (
            *("retrieve-neighbours", "--query-embeddings", shard / "embeddings.npy"),
            *("--query-chunk2seq", shard / "chunk2seq.npy", "--neighbours-output", f"{folder}/neighbours.npy"),
            *("--index", index, "--index-spec", spec, "--nprobe", 1, "--retrieval-margin", 1),
            *("--num-neighbours", 3, "--memory-budget", "125KiB"),
        ),
        "neighbours.report.json",
        "neighbours",
        152 * 40,
        128,
        {"BLOCK_ROWS": 32},
    )
    _check_resumes(case, run, f"{s3}/retrieve/calm", f"{s3}/retrieve/stormy", tmp_path, monkeypatch)
    details = _outputs(case, f"{s3}/retrieve/stormy")[0]["details"]
    assert details["resumed_at"] % case.block_rows == 0
    assert details["effort"]["widened_rows"] > 0
    assert details["removed"]["same_document"] > 0


class InterruptionError(Exception):
    pass


def _interrupt_after(count: int, patch: pytest.MonkeyPatch) -> None:
    commit = checkpoints.Checkpoints.commit_when_due
    left = [count]

    def until_then(unfinished: checkpoints.Checkpoints, state: Any = None) -> None:
        commit(unfinished, state)
        left[0] -= 1
        if not left[0]:
            raise InterruptionError

    patch.setattr(checkpoints.Checkpoints, "commit_when_due", until_then)


@pytest.mark.parametrize("options", [(), ("--max-chunks", 200), ("--max-bad-share", 0.01)], ids=str)
def test_wherever_tokenising_is_interrupted_it_ends_as_if_it_had_not_been(
    tmp_path: Path, run: Run, texts: list[str], t5_dir: str, options: tuple[object, ...]
) -> None:
    """Limit, bad records and the share of them included; also where there is nothing but bad records."""
    records = [*[{"no": "text"}] * 9, *_records([text[:900] for text in texts])]
    corpora = [write_corpus(tmp_path / "corpus/a.jsonl", records), write_corpus(tmp_path / "corpus/b.jsonl", records)]
    code = 65 if "--max-bad-share" in options else 0

    def tokenize(folder: Path, code: int) -> dict[str, bytes]:
        run("tokenize-and-chunk", *corpora, *tokenize_flags(folder, t5_dir), *options, code=code)
        files = (path for path in folder.rglob("*") if path.is_file() and ".unfinished-" not in str(path))
        return {path.name: path.read_bytes() for path in files if path.suffixes != [".report", ".json"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize_and_chunk, "BATCH_DOCUMENTS", 4)
        calm = tokenize(tmp_path / "calm", code)
        assert "chunks.quarantine.jsonl" in calm
        patch.setattr(checkpoints, "COMMIT_SECONDS", 0)
        for count in (1, 2, 3, 7, 11):
            folder = tmp_path / str(count)
            with pytest.MonkeyPatch.context() as once:
                _interrupt_after(count, once)
                tokenize(folder, 1)
            assert _unfinished(str(folder))
            assert tokenize(folder, code) == calm
            assert bool(_unfinished(str(folder))) == bool(code), "blocks of a stage that failed stay"


def test_standard_input_is_never_resumed(
    tmp_path: Path, run: Run, t5_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n' * 9)))
    monkeypatch.setattr(tokenize_and_chunk, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(checkpoints, "COMMIT_SECONDS", 0)
    _interrupt_after(3, monkeypatch)
    run("tokenize-and-chunk", *tokenize_flags(tmp_path, t5_dir), code=1)
    assert not list(tmp_path.iterdir())


def test_blocks_of_a_plan_lie_in_the_folder_of_their_stage() -> None:
    folder = paths.unfinished_folder("s3://b/shards/a/embed-chunks-0f/embeddings.npy", "0f")
    assert paths.block_uri(folder, 7) == "s3://b/shards/a/embed-chunks-0f/embeddings.unfinished-0f/00007.npz"
