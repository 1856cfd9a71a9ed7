"""Neighbours over HTTP: those of the dataset, in the original's protocol, and clear answers to odd requests."""

import http.client
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from nightly import First, Nights
from runs import Done, call

from retro_data import Dataset, open_dataset
from retro_ops.compute.device import choose
from retro_ops.embedding.model import open_model
from retro_ops.errors import BadInputError, ConfigurationError
from retro_ops.execution import report
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Plan
from retro_ops.serving.http_server import MOST_BYTES, Server
from retro_ops.serving.neighbours import ServedVersion
from retro_ops.storage import store
from retro_ops.tokens.tokenizer import Tokenizer

MACHINE = Parameters(memory_budget="256MiB")
JSON = {"Content-Type": "application/json"}


class Served(NamedTuple):
    port: int
    dataset: Dataset
    version: ServedVersion
    run: Done


@pytest.fixture(scope="module")
def served(first_version: First, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    nights = first_version.restored()
    run = nights.runs[0]
    version = ServedVersion(run.plan, run.plan_uri, "train", MACHINE)
    with (
        open_dataset(f"{nights.root}/d", cache=str(tmp_path_factory.mktemp("cache")), lease=False) as dataset,
        Server(("127.0.0.1", 0), version, {"version": 1, "chunks": version.total}) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Served(server.server_address[1], dataset, version, run)
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def original_client(port: int, embeddings: Any, k: int) -> tuple[Any, Any, Any]:
    """As the original's IndexServiceClient asks."""
    assert ask(port, "GET", "/health")[0] == 200
    status, content = ask(port, "POST", f"/query?k={k}", npy(embeddings))
    assert status == 200, content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        distances, ids, near = (
            np.load(io.BytesIO(archive.read(name))) for name in ("distances", "indices", "embeddings")
        )
    return distances, ids, near


def test_its_neighbours_are_those_of_the_dataset(served: Served) -> None:
    """A query of the service has no document, so chunks of its own document are left out here."""
    train = served.dataset.train
    embeddings = train.embeddings(0, len(train))
    distances, ids, near = original_client(served.port, embeddings.astype(np.float32), len(train))
    np.testing.assert_array_equal(near, embeddings[ids])
    documents = train.document_ids(0, len(train))
    rows = train[:]
    for row in range(len(train)):
        others = documents[ids[row]] != documents[row]
        k = int((rows.neighbours[row] >= 0).sum())
        np.testing.assert_array_equal(ids[row][others][:k], rows.neighbours[row][:k])
        np.testing.assert_array_equal(distances[row][others][:k], rows.distances[row][:k])


def test_texts_and_tokens_find_their_own_chunks(served: Served) -> None:
    train = served.dataset.train
    rows = train[[0, 5, 9]]
    status, content = ask(served.port, "POST", "/query?k=2", npy(rows.tokens))
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        by_array = np.load(io.BytesIO(archive.read("indices")))
    for question in ({"tokens": rows.tokens.tolist()}, {"texts": rows.text()}):
        status, content = ask(served.port, "POST", "/query?k=2", json.dumps(question).encode(), **JSON)
        assert status == 200, content
        answer = json.loads(content)
        np.testing.assert_array_equal(answer["indices"], by_array)
        assert [near[0] for near in answer["texts"]] == rows.text()
        assert max(near[0] for near in answer["distances"]) < 0.001


def test_neighbours_that_do_not_exist_are_none(served: Served) -> None:
    train = served.dataset.train
    status, content = ask(served.port, "POST", "/query?k=900", json.dumps({"texts": ["a sea"]}).encode(), **JSON)
    answer = json.loads(content)
    assert (status, answer["indices"][0][len(train) :]) == (200, [-1] * (900 - len(train)))
    assert {*answer["texts"][0][len(train) :], *answer["distances"][0][len(train) :]} == {None}


UNIT = np.eye(2, 384, dtype=np.float32)

ODD: dict[str, tuple[int, str, bytes, str]] = {
    "no k": (400, "/query", npy(UNIT), "k is '?'"),
    "k of 0": (400, "/query?k=0", npy(UNIT), "k is '0'"),
    "k that is no number": (400, "/query?k=%D9%A3", npy(UNIT), "k is"),
    "k without end": (400, "/query?k=" + "9" * 5000, npy(UNIT), "k is"),
    "another path": (404, "/../etc/passwd?k=1", npy(UNIT), "GET /health"),
    "health by POST": (405, "/health", b"", "GET /health"),
    "no body": (400, "/query?k=1", b"", "send a .npy"),
    "no queries": (400, "/query?k=1", npy(UNIT[:0]), "0 queries"),
    "no tokens": (400, "/query?k=1", b'{"tokens": []}', "0 queries"),
    "chunks without tokens": (400, "/query?k=1", b'{"tokens": [[], []]}', "64 tokens here, not 0"),
    "no texts": (400, "/query?k=1", b'{"texts": []}', "0 queries"),
    "pickles": (400, "/query?k=1", npy(np.array([{}, {}])), "is not that of an array of numbers"),
    "a header alone": (400, "/query?k=1", npy(UNIT)[:128], "send a C-ordered array"),
    "a header that claims more": (400, "/query?k=1", npy(UNIT).replace(b"(2, ", b"(9, "), "send a C-ordered array"),
    "a negative shape": (400, "/query?k=1", npy(UNIT[:, :3]).replace(b"(2, 3), } ", b"(-2,-3), }"), "of numbers"),
    "a damaged header": (400, "/query?k=1", npy(UNIT).replace(b"descr", b"de cr"), "not a .npy array"),
    "another dimension": (400, "/query?k=1", npy(UNIT[:, :100]), "384 dimensions here, not 100"),
    "one dimension": (400, "/query?k=1", npy(UNIT[0]), "send a C-ordered array"),
    "NaN": (400, "/query?k=1", npy(UNIT * np.nan), "not L2-normalised"),
    "too long vectors": (400, "/query?k=1", npy(UNIT * 2), "not L2-normalised"),
    "too many queries": (413, "/query?k=1", npy(np.ones((5000, 384), np.float16)), "5,000 queries"),
    "too many neighbours in all": (413, "/query?k=1000", npy(np.tile(UNIT, (33, 1))), "66 queries"),
    "too many embeddings for the memory budget": (413, "/query?k=1000", npy(np.eye(11, 384)), "at most 10,922 of"),
    "too many texts for the memory budget": (413, "/query?k=1000", b'{"texts": [%s"a"]}' % (b'"a",' * 8), "most 8,192"),
    "short chunks": (400, "/query?k=1", npy(np.ones((1, 63), np.uint16)), "64 tokens here, not 63"),
    "unknown tokens": (400, "/query?k=1", npy(np.full((1, 64), 65535, np.uint16)), "token ids are 0 to"),
    "negative tokens": (400, "/query?k=1", npy(np.full((1, 64), -1)), "token ids are 0 to"),
    "no JSON": (400, "/query?k=1", b"{", "send a .npy"),
    "deep JSON": (400, "/query?k=1", b"[" * 100_000, "send a .npy"),
    "JSON of something else": (400, "/query?k=1", b'{"texts": ["a"], "k": 1}', "send a .npy"),
    "texts that are none": (400, "/query?k=1", b'{"texts": [1]}', "send a .npy"),
    "half a character": (400, "/query?k=1", b'{"texts": ["\\ud800"]}', "send a .npy"),
    "tokens that are none": (400, "/query?k=1", b'{"tokens": [[1.5]]}', "send a .npy"),
    "ragged tokens": (400, "/query?k=1", b'{"tokens": [[1], [1, 2]]}', "different lengths"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_request_gets_a_clear_answer(served: Served, kind: str) -> None:
    expected, path, body, words = ODD[kind]
    status, content = ask(served.port, "POST", path, body)
    assert (status, words in json.loads(content)["error"]) == (expected, True), content


def test_requests_that_no_library_would_send(served: Served) -> None:
    def raw(text: str) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), 60) as connection:
            connection.sendall(text.encode())
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()

    post = "POST /query?k=1 HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 411 " in raw(f"{post}\r\n").partition(b"\r\n")[0]
    assert b" 411 " in raw(f"{post}Content-Length: -5\r\n\r\n").partition(b"\r\n")[0]
    assert b" 413 " in raw(f"{post}Content-Length: {MOST_BYTES + 1}\r\n\r\n").partition(b"\r\n")[0]
    assert b" 413 " in raw(f"{post}Content-Length: {'9' * 5000}\r\n\r\n").partition(b"\r\n")[0]
    assert b" 400 " in raw(f"{post}Content-Length: 50\r\n\r\nabc").partition(b"\r\n")[0]
    rebound = "GET /health HTTP/1.1\r\nHost: attacker.example:80\r\nConnection: close\r\n\r\n"
    assert b" 403 " in raw(rebound).partition(b"\r\n")[0]
    assert b" 400 " in raw("GET /health HTTP/1.1\r\nHost: [\r\n\r\n").partition(b"\r\n")[0]
    assert b" 400 " in raw("GET http://[/health HTTP/1.1\r\nHost: localhost\r\n\r\n").partition(b"\r\n")[0]
    assert ask(served.port, "GET", "/health")[0] == 200


def test_an_unexpected_error_is_answered_and_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def exhausted(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(logging.getLogger("retro_ops"), "propagate", True)
    with monkeypatch.context() as broken:
        broken.setattr(served.version, "query", exhausted)
        status, content = ask(served.port, "POST", "/query?k=1", npy(UNIT))
    assert (status, "RuntimeError" in json.loads(content)["error"]) == (500, True)
    assert "CUDA out of memory" in caplog.text
    assert ask(served.port, "POST", "/query?k=1", npy(UNIT))[0] == 200


def test_it_searches_with_torch(served: Served) -> None:
    """Not with faiss, whose GPU package need not be there."""
    assert served.version.device == choose("auto", "torch")


def named(plan: Plan, **parameters: Any) -> Plan:
    return replace(plan, parameters=replace(plan.parameters, **parameters))


def test_a_model_that_changed_under_its_name_is_refused(served: Served, small_model: str, tmp_path: Path) -> None:
    """It has the same dimension, so that nothing else would tell: it reads less of a text."""
    plan, folder = served.run.plan, tmp_path / "model"
    shutil.copytree(small_model, folder, copy_function=os.symlink)
    reads = folder / "tokenizer_config.json"
    text = reads.read_text().replace('"model_max_length": 256', '"model_max_length": 32')
    reads.unlink()
    reads.write_text(text)
    digest = open_model(str(folder)).digest
    assert digest != plan.identity.model_digest
    with pytest.raises(ConfigurationError, match=f"digest is {digest}.*{plan.identity.model_digest}"):
        ServedVersion(named(plan, model=str(folder)), served.run.plan_uri, "train", MACHINE)


def test_a_tokenizer_that_changed_under_its_name_is_refused(served: Served, t5_dir: str, tmp_path: Path) -> None:
    """Where the run is gone, and with it the tokenizer that it stored."""
    plan = named(served.run.plan, tokenizer=t5_dir)
    digests = f"{Tokenizer.load(t5_dir).digest}.*{plan.identity.tokenizer_digest}"
    with pytest.raises(ConfigurationError, match=digests):
        ServedVersion(plan, f"{tmp_path}/plan.json", "train", MACHINE)


def test_a_version_of_the_seed_profile_is_refused(served: Served) -> None:
    with pytest.raises(BadInputError, match="--profile seed"):
        ServedVersion(named(served.run.plan, profile="seed"), served.run.plan_uri, "train", MACHINE)


def test_a_tuned_search_finds_the_same_and_misses_its_index_at_the_start(built: Nights) -> None:
    run = built.runs[0]
    uri = paths.report_uri(run.plan, "tune-search")
    tuned = {key: value for key, value in report.require(uri, "tune-search").items() if key != report.SEAL}
    exact = ServedVersion(run.plan, run.plan_uri, "train", MACHINE)
    tuned["details"]["train"]["width"] = {"nprobe": 1, "candidates": exact.total}
    store.write(uri, report.sealed(tuned))
    version = ServedVersion(run.plan, run.plan_uri, "train", MACHINE)
    query = np.eye(3, version.dimension, dtype=np.float16)
    np.testing.assert_array_equal(version.query(query, 4).ids, exact.query(query, 4).ids)
    store.at(run.plan.root).delete(paths.index_uri(run.plan, "train"))
    with pytest.raises(BadInputError, match="does not exist"):
        ServedVersion(run.plan, run.plan_uri, "train", MACHINE)


def test_the_command_keeps_the_version_while_it_serves(built: Nights) -> None:
    """It reads the tokenizer that the run stored, although the name now refers to another one."""
    uri = built.series().plan_uri()
    plan = json.loads(store.read(uri))
    plan["parameters"]["tokenizer"] = "no such folder"
    store.write(uri, json.dumps(plan).encode())
    words = ("serve", "--root", built.root, "--dataset", "d", "--port", "0", "--device", "cpu")
    with subprocess.Popen(
        [sys.executable, "-m", "retro_ops.cli", *words], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stderr
        said = next(line for line in map(json.loads, process.stderr) if line.get("event") == "listening")
        status, content = ask(said["port"], "GET", "/health")
        about = json.loads(content)
        assert (status, about["version"], about["split"], about["chunk_size"]) == (200, 1, "train", 64)
        assert ask(said["port"], "POST", "/query?k=1", b'{"texts": ["a sea"]}', **JSON)[0] == 200
        assert len(list(Path(f"{built.root}/d/readers").iterdir())) == 1
        process.terminate()
        process.wait(30)
    assert not list(Path(f"{built.root}/d/readers").iterdir())
    with pytest.raises(Exception, match="exit code 65"):
        call("serve", "--root", built.root, "--dataset", "d", "--split", "val", "--version", "9")
