"""Specs, layout, arrays, store and corpus on local files."""

import dataclasses
import functools
import gzip
import io
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from retro_ops import cli, sizes
from retro_ops.corpus import json_lines
from retro_ops.errors import BadInputError, TransientError
from retro_ops.plan import digests, paths, specs, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard, Source, plan_from_json, plan_to_json
from retro_ops.storage import npy, read_ahead, store
from retro_ops.storage.base import ConflictError

SHARD = Shard("00_a", "train", (Source("s3://b/00_a.jsonl", 10, "etag:1:10"),))
VALIDATION = Shard("val_a", "val", (Source("s3://b/val_a.jsonl", 5, "etag:2:5"),))
IDENTITY = Identity("t", 30_000, 0, "m", 384)
PLAN = Plan("books", "s3://b/root", Parameters(), IDENTITY, (SHARD, VALIDATION))
STAGES = (*stage_graph.SHARD_STAGES, "train-faiss-index", "merge-indexes", "tune-search", "write-specs")


def _folders(plan: Plan) -> set[str]:
    return {paths.stage_folder(plan, stage, "00_a") for stage in STAGES}


def test_a_plan_survives_the_way_to_json_and_back() -> None:
    assert plan_from_json(plan_to_json(PLAN), "plan.json") == PLAN


def test_a_shard_is_without_only_what_is_said() -> None:
    without = dataclasses.replace(SHARD, without=Source("s3://b/root/without.npy", 9, "sha256:1"))
    plan = dataclasses.replace(PLAN, shards=(without, VALIDATION), deduplicated=True)
    assert plan_from_json(plan_to_json(plan), "plan.json") == plan
    assert "without" not in plan_to_json(PLAN)
    assert "deduplicated" not in plan_to_json(PLAN)
    assert digests.tokenize_digest(plan, without) != digests.tokenize_digest(PLAN, SHARD)
    assert digests.tokenize_digest(plan, VALIDATION) == digests.tokenize_digest(PLAN, VALIDATION)
    assert digests.sign_digest(plan, without) == digests.sign_digest(PLAN, SHARD)
    # As it was before there was anything to leave out.
    assert digests.tokenize_digest(PLAN, SHARD) == "4c749ac9fe81eea2"


@pytest.mark.parametrize("after", paths.PLAN_SUFFIXES)
def test_every_plan_leads_to_the_first(after: str) -> None:
    uri = f"s3://b/root/d/runs/x/plan{after}"
    assert paths.first_plan_uri(uri) == "s3://b/root/d/runs/x/plan.json"
    assert paths.is_plan(uri)
    assert uri in paths.plans_after("s3://b/root/d/runs/x/plan.json")
    assert paths.duplicates_uri(uri) == "s3://b/root/d/runs/x/plan.duplicates.json"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1}', '{"format": 1, "dataset": ".."}'])
def test_what_is_no_plan_is_told_with_its_file(text: str) -> None:
    with pytest.raises(BadInputError, match=r"plan\.json|dataset name"):
        plan_from_json(text, "plan.json")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Parameters)])
def test_a_parameter_changes_folders_exactly_if_it_changes_content(field: str) -> None:
    value = getattr(PLAN.parameters, field)
    other = not value if isinstance(value, bool) else 7 if value is None or isinstance(value, int | float) else "x"
    other = "4GiB" if field == "memory_budget" else other
    changed = dataclasses.replace(PLAN, parameters=dataclasses.replace(PLAN.parameters, **{field: other}))
    # Tokenizer, model and pad id count by what they are, which the plan's identity says.
    how = {*cli.HOW_NOT_WHAT, "tokenizer", "model", "pad_id"}
    # And duplicates by what the shards are without, once somebody has looked.
    how |= {"duplicates", "duplicate_threshold"}
    assert (_folders(changed) == _folders(PLAN)) == (field in how)


def test_identity_and_content_change_folders() -> None:
    for field in ("tokenizer_digest", "model_digest", "pad_id"):
        other = dataclasses.replace(PLAN, identity=dataclasses.replace(IDENTITY, **{field: 9}))  # type: ignore[arg-type]
        assert digests.version_digest(other) != digests.version_digest(PLAN)
    renamed = dataclasses.replace(SHARD.sources[0], uri="s3://elsewhere/x.jsonl")
    moved = dataclasses.replace(PLAN, shards=(dataclasses.replace(SHARD, sources=(renamed,)), VALIDATION))
    assert _folders(moved) == _folders(PLAN), "a corpus file counts by content"


def test_the_validation_index_starts_with_the_training_shards() -> None:
    assert [s.name for s in PLAN.indexed("train")] == ["00_a"]
    assert [s.name for s in PLAN.indexed("val")] == ["00_a", "val_a"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a\n", "ü"])
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(BadInputError):
        paths.dataset_folder("s3://b/root", name)
    assert "/../" not in paths.plan_uri("s3://b/root", "books", name)


@pytest.mark.parametrize("root", ["s3://b/root", "/data/root", "relative/root"])
def test_specs_hold_paths_relative_to_themselves(root: str) -> None:
    plan = dataclasses.replace(PLAN, root=root)
    uri = paths.dataset_spec_uri(plan, "val")
    text = specs.dataset_spec_to_json(paths.dataset_spec(plan, "val"), uri)
    assert root not in text
    assert specs.dataset_spec_from_json(text, uri) == paths.dataset_spec(plan, "val")
    uri = paths.index_spec_uri(plan, "val")
    text = specs.index_spec_to_json(paths.index_shards(plan, "val"), uri)
    assert specs.index_spec_from_json(text, uri) == paths.index_shards(plan, "val")


def test_amounts_of_memory() -> None:
    assert sizes.parse_bytes("2GiB") == 2**31
    assert sizes.parse_bytes("1.5 kB") == 1500
    assert sizes.parse_bytes("7") == 7
    for bad in ("", "2 GiBs", "-1", "lots"):
        with pytest.raises(BadInputError):
            sizes.parse_bytes(bad)


@pytest.mark.parametrize("shape", [(0,), (5,), (0, 4), (7, 4)])
def test_written_arrays_have_the_bytes_of_numpy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    expected = io.BytesIO()
    np.save(expected, rows)
    for known in (None, shape[0]):
        uri = str(tmp_path / "a.npy")
        with npy.NpyWriter(uri, np.float32, shape[1:], rows=known) as writer:
            writer.append(rows[:3])
            writer.append(rows[3:])
            written = writer.close()
        assert Path(uri).read_bytes() == expected.getvalue()
        assert written.sha256 == store.sha256(uri)
    np.testing.assert_array_equal(npy.open_npy(uri).rows(1, 4), rows[1:4])


def test_what_is_no_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.arange(10))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "good.npy").read_bytes()[:-1])
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(np.ones((3, 4))))
    (tmp_path / "text.npy").write_text("hello")
    for name in ("cut", "pickled", "fortran", "text", "missing"):
        with pytest.raises(BadInputError, match=f"{name}.npy"):
            npy.open_npy(str(tmp_path / f"{name}.npy"))


def _write_and_fail(uri: str) -> None:
    with store.create(uri) as writer:
        writer.write(b"half")
        raise RuntimeError


# The second writer is left open on purpose, as a kill leaves it.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_damaged_header_is_told_or_harmless(tmp_path: Path) -> None:
    """Every bit of it: an array that can still be read has its shape, anything else names the file."""
    path = tmp_path / "array.npy"
    np.save(path, np.arange(12, dtype=np.int64).reshape(6, 2))
    sound = path.read_bytes()
    refused = []
    for bit in range(128 * 8):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            npy.open_npy(str(path))
        except BadInputError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert all("array.npy" in said for said in refused)


def test_a_local_write_is_all_or_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "folder" / "a.bin")
    with pytest.raises(RuntimeError):
        _write_and_fail(uri)
    assert list((tmp_path / "folder").iterdir()) == []
    killed = store.at(uri).create(uri)
    killed.write(b"killed before close")
    store.write(uri, b"whole")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.bin"]
    killed.abort()  # Its file is open in this process still.


def test_an_array_that_cannot_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    writer = npy.NpyWriter(str(tmp_path / "taken"), np.int64)
    with pytest.raises(BadInputError, match="taken"), writer:
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_writer_that_another_swept_away_is_to_be_tried_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.bin")
    first = store.at(uri).create(uri)
    store.write(uri, b"second")
    with pytest.raises(TransientError, match="took over"):
        first.close()
    first.abort()
    assert store.read(uri) == b"second"


def test_compare_and_swap_on_files(tmp_path: Path) -> None:
    uri = str(tmp_path / "current.json")
    local = store.at(uri)
    assert local.read_tagged(uri) is None
    local.write_if(uri, b"1", None)
    with pytest.raises(ConflictError):
        local.write_if(uri, b"2", None)
    tagged = local.read_tagged(uri)
    assert tagged is not None
    local.write_if(uri, b"3", tagged[1])
    assert store.read(uri) == b"3"


def _texts(path: Path, limit: int = 1000) -> list[str]:
    found = (json_lines.parse(line, source, n, limit) for source, n, line in json_lines.lines([str(path)], limit))
    return [record.text if isinstance(record, json_lines.Document) else record.reason for record in found]


def _flipped(data: bytes) -> bytes:
    """Damaged in the middle, so that inflating fails, not only the checksum at the end."""
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 16 + data[middle + 16 :]


def test_zstd_files_of_many_frames_are_read_and_those_cut_between_lines_too_are_refused(tmp_path: Path) -> None:
    """zstandard's own reader ends without a word where the file does: documents would be lost in silence."""
    lines = [json.dumps({"text": secrets.token_hex(200)}).encode() + b"\n" for _ in range(2000)]
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    path = tmp_path / "many.jsonl.zst"
    path.write_bytes(skippable.join(zstandard.compress(line) for line in lines) + zstandard.compress(b""))
    assert _texts(path) == [json.loads(line)["text"] for line in lines]
    whole = zstandard.compress(b"".join(lines))
    for length in (5, 9000, 8192, 16384, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInputError, match="ends in the middle of a zstd frame"):
            _texts(path)


def test_compressed_corpora_are_read_and_damaged_ones_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(100)]
    data = "".join(lines).encode()
    frames = zstandard.compress(data[:500]) + zstandard.compress(data[500:])
    for name, content in (("a.jsonl.gz", gzip.compress(data)), ("a.jsonl.zst", frames), ("a.jsonl", data)):
        (tmp_path / name).write_bytes(content)
        assert _texts(tmp_path / name) == [f"document {i}" for i in range(100)]
    for name, content in (
        ("b.jsonl.gz", gzip.compress(data)[:-20]),
        ("c.jsonl.gz", b"not gzip"),
        ("d.jsonl.zst", b"x" * 99),
        *((f"cut{n}.jsonl.zst", frames[:-n]) for n in (1, 3, len(frames) // 2)),
        ("flipped.jsonl.gz", _flipped(gzip.compress(data, mtime=0))),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=name):
            _texts(tmp_path / name)


def test_line_ends_and_lines_beyond_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r\n{"text": "' + b"x" * 300 + b'"}\n{"text": "b"}')
    texts = _texts(path, 100)
    assert (texts[0], texts[2]) == ("a", "b")
    assert "longer than 100 bytes" in texts[1]


def test_corpus_files_are_found_by_file_folder_and_pattern(tmp_path: Path) -> None:
    for name in ("00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [Path(uri).relative_to(tmp_path).as_posix() for uri in json_lines.find(f"{tmp_path}/{pattern}")]

    everything = ["00_a.jsonl", "01_a.jsonl.gz", "02_a.jsonl.zst", "x/03_b.jsonl"]
    assert found("00_a.jsonl") == ["00_a.jsonl"]
    assert found("") == found("**/*.jsonl*") == everything
    assert found("{00..01}_*.jsonl*") == everything[:2]
    assert found("*_a.jsonl") == ["00_a.jsonl"]
    with pytest.raises(BadInputError, match="no corpus file"):
        found("*.parquet")


def test_sigterm_ends_a_stage_in_order(tmp_path: Path) -> None:
    """As process 1 of a container a stage gets no default handler, and an unfinished upload is to be aborted."""
    out = tmp_path / "chunks.npy"
    words = ("tokenize-and-chunk", "--chunks-out", out, "--seq2chunk-index-out", f"{out}.s", "--chunk2seq-index-out")
    process = subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *words, f"{out}.c"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_reads_run_ahead_in_order_and_no_further_than_they_may() -> None:
    started: list[int] = []

    def read(number: int) -> int:
        started.append(number)
        if number == 30:
            raise BadInputError("gone")
        return number

    reads = read_ahead.ahead(functools.partial(read, number) for number in range(40))
    for number in range(20):
        assert next(reads) == number
        assert len(started) <= number + read_ahead.AHEAD
    with pytest.raises(BadInputError, match="gone"):
        list(reads)
    assert len(started) <= 31 + read_ahead.AHEAD
    closed = read_ahead.ahead(functools.partial(read, number) for number in range(10))
    next(closed)
    closed.close()


def test_a_gpu_is_looked_for_only_where_there_is_a_driver() -> None:
    """Importing torch to ask would cost stages without a model seconds and memory."""
    code = (
        "import sys; from retro_ops.compute import device; "
        "print(device.choose('auto', 'torch').chosen, 'torch' in sys.modules)"
    )
    without = f"from retro_ops.compute import device; device.DRIVERS = ('no-such-driver.so',); {code}"
    found = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["cpu", "False"]
