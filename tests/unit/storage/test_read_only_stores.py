"""Documents from the Hugging Face hub and from web servers, over TLS, from a server that speaks their protocols."""

import gzip
import hashlib
import http.server
import io
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hub import TOKEN, Hub, serving
from huggingface_hub import close_session, constants
from pyarrow import parquet
from urllib3.util.retry import RequestHistory

from retro_ops.corpus import finding, source_lines
from retro_ops.corpus.recipes import file_list
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.errors import BadInputError, ConfigurationError, TransientError
from retro_ops.planning.shards import of_patterns
from retro_ops.storage import http_ranges, store

LIMIT = 2**20
BOOKS = "hf://datasets/owner/books"


def table(rows: int) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table({"body": [f"row {n}" for n in range(rows)]}), out, row_group_size=100)
    return out.getvalue()


LINES = b"".join(json.dumps({"text": f"line {n}"}).encode() + b"\n" for n in range(5))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serving(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "SSL_CERT_FILE": str(server.certificate)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(http_ranges.time, "sleep", lambda seconds: None)
    http_ranges._pool.cache_clear()
    close_session()
    server.files = {
        **{f"data/{n:02}.parquet": table(1000 + n) for n in range(4)},
        "README.md": b"# Books\n",
        "lines/a.jsonl.gz": gzip.compress(LINES),
        "lines/empty.jsonl": b"",
        "big.jsonl": random.Random(0).randbytes(20 * 2**20),
    }
    server.large = {path for path in server.files if path.endswith(".parquet")} | {"big.jsonl"}
    server.broken, server.ranges = 0, True
    server.stored.clear()
    server.requests.clear()
    yield server
    http_ranges._pool.cache_clear()
    close_session()


def test_a_corpus_on_the_hub_is_found_and_planned_with_few_requests(hub: Hub) -> None:
    assert finding.find(BOOKS)[:2] == [f"{BOOKS}/big.jsonl", f"{BOOKS}/data/00.parquet"]
    assert finding.find(f"{BOOKS}/lines") == [f"{BOOKS}/lines/a.jsonl.gz", f"{BOOKS}/lines/empty.jsonl"]
    assert finding.find(f"{BOOKS}/lines/a.jsonl.gz") == [f"{BOOKS}/lines/a.jsonl.gz"]
    hub.requests.clear()
    shards, _ = of_patterns({"corpus": f"{BOOKS}/data/{{00..02}}.parquet", "validation_corpus": None}, None)
    assert [shard.name for shard in shards] == ["00", "01", "02"]
    assert len(hub.requests) == 4, "a file, a folder of that name, and two pages of the folder; none for each file"
    for number, shard in enumerate(shards):
        (source,) = shard.sources
        assert source.bytes == len(hub.files[f"data/{number:02}.parquet"])
        assert source.fingerprint == store.at(source.uri).fingerprint(source.uri)


def test_a_changed_file_has_another_fingerprint_at_once(hub: Hub) -> None:
    for path in ("data/00.parquet", "lines/a.jsonl.gz"):
        uri = f"{BOOKS}/{path}"
        store.at(uri).list(f"{BOOKS}/{path.partition('/')[0]}")
        planned = store.at(uri).fingerprint(uri)
        assert store.at(uri).fingerprint(uri) == planned
        hub.files[path] += b"x"
        assert store.at(uri).fingerprint(uri) != planned


def test_the_fingerprint_of_a_large_file_is_that_of_its_local_copy(hub: Hub, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(hub.files["data/00.parquet"])
    uri = f"{BOOKS}/data/00.parquet"
    assert store.at(uri).fingerprint(uri) == store.at(str(copy)).fingerprint(str(copy))


def test_files_of_the_hub_are_read_through_redirects_and_broken_connections(hub: Hub) -> None:
    """The other host of a redirect asserts that it gets no token."""
    hub.broken = 5
    assert store.read(f"{BOOKS}/big.jsonl") == hub.files["big.jsonl"]
    assert hub.broken == 0
    assert store.read(f"{BOOKS}/lines/empty.jsonl") == b""
    rows = list(source_lines.lines([f"{BOOKS}/data/01.parquet"], LIMIT, "body", first=998))
    assert [json.loads(line or b"")["body"] for _, _, line in rows] == ["row 998", "row 999", "row 1000"]
    assert len(list(source_lines.lines([f"{BOOKS}/lines/a.jsonl.gz"], LIMIT, "text"))) == 5


def test_a_large_file_of_the_hub_with_another_checksum_is_never_read_to_its_end(hub: Hub) -> None:
    whole = hub.files["big.jsonl"]
    hub.stored["big.jsonl"] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(BadInputError, match=r"has SHA-256 .*\n.*was changed"):
        store.read(f"{BOOKS}/big.jsonl")


def large_files(rows: int, characters: int) -> dict[str, bytes]:
    """Each format with the same documents, of which a table also has a column as large as the text."""
    letters = random.Random(1)
    texts = [f"{letters.getrandbits(4 * characters):0{characters}x}" for _ in range(rows)]
    lines = b"".join(json.dumps({"body": text}).encode() + b"\n" for text in texts)
    out = io.BytesIO()
    parquet.write_table(pa.table({"raw": texts[::-1], "body": texts}), out, compression="none", use_dictionary=False)
    return {
        "large/a.jsonl": lines,
        "large/a.jsonl.gz": gzip.compress(lines, 1),
        "large/a.jsonl.zst": zstandard.compress(lines, 1),
        "large/a.parquet": out.getvalue(),
    }


@pytest.mark.parametrize("place", ["hub", "web server"])
def test_a_sample_of_a_large_file_reads_its_beginning(hub: Hub, place: str) -> None:
    """`plan` samples some files of each split, so its reads do not grow with their sizes."""
    files = large_files(rows=6000, characters=1000)
    hub.files |= files
    hub.large |= set(files)
    for path, content in files.items():
        uri = f"{BOOKS}/{path}" if place == "hub" else address(hub, path)
        hub.sent = 0
        documents, share = source_lines.sample(uri, LIMIT, "body", 2**19)
        assert len(documents) / share == pytest.approx(6000, rel=0.3), path
        assert hub.sent < 2.5 * 2**20 < len(content), path


def test_a_sample_never_reads_more_than_it_may(hub: Hub) -> None:
    """Where no document ends in the bytes that it may read, it gives none."""
    files = large_files(rows=2, characters=3 * 2**20)
    hub.files |= files
    for path in files:
        hub.sent = 0
        assert source_lines.sample(address(hub, path), 2**30, "body", 2**17, most_bytes=2**20) == ([], 0.0), path
        assert 0 < hub.sent <= 2**20 + 1, path


def test_what_is_wrong_on_the_hub_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, words in {
        f"{BOOKS}/none.jsonl": "no corpus file",
        f"{BOOKS}/none/*.jsonl": "no corpus file",
        "hf://datasets/owner/others/a.jsonl": "does not exist, or is private",
        "hf://datasets/books/a.jsonl.gz": "does not exist, or is private",
        "hf://models/owner/books/a.jsonl": "is not a location on the hub",
    }.items():
        with pytest.raises(BadInputError, match=words):
            finding.find(uri)
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(ConfigurationError, match=r"refused hf://.*status 401\n.*HF_TOKEN"):
        store.read(f"{BOOKS}/lines/a.jsonl.gz")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for read in (store.read, finding.find):
        with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE=0"):
            read(f"{BOOKS}/lines/a.jsonl.gz")


def address(hub: Hub, path: str, content: bytes | None = None) -> str:
    checksum = hashlib.sha256(hub.files[path] if content is None else content).hexdigest()
    return f"{hub.url}/storage/{path}#sha256={checksum}"


def test_files_of_a_web_server_are_read_with_their_checksum(hub: Hub) -> None:
    hub.broken = 2
    uri = address(hub, "lines/a.jsonl.gz")
    shards, _ = of_patterns({"corpus": uri, "validation_corpus": None}, None)
    assert [(shard.name, shard.sources[0].bytes) for shard in shards] == [("a", len(hub.files["lines/a.jsonl.gz"]))]
    assert len(list(source_lines.lines([uri], LIMIT, "text"))) == 5
    assert len(list(source_lines.lines([address(hub, "data/03.parquet")], LIMIT, "body"))) == 1003
    assert store.read(address(hub, "big.jsonl")) == hub.files["big.jsonl"]
    assert store.read(address(hub, "lines/empty.jsonl")) == b""


@pytest.mark.parametrize("path", ["lines/a.jsonl.gz", "data/03.parquet", "big.jsonl", "lines/empty.jsonl"])
def test_a_file_with_another_checksum_is_never_read_to_its_end(hub: Hub, path: str) -> None:
    with pytest.raises(BadInputError, match=r"has SHA-256 .*\n.*was changed"):
        list(source_lines.lines([address(hub, path, b"another")], LIMIT, "body"))


def test_what_is_wrong_on_a_web_server_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = address(hub, "lines/a.jsonl.gz")
    for uri, words in {
        whole.partition("#")[0]: "not an address with a checksum",
        whole.replace("//", "//user:secret@"): "not an address with a checksum",
        whole.replace("https", "http"): "cannot open",
        whole.replace("lines", "none"): "no corpus file",
    }.items():
        with pytest.raises(BadInputError, match=words) as found:
            finding.find(uri)
        assert "secret" not in str(found.value)
    with pytest.raises(ConfigurationError, match="is read-only"):
        store.write(whole, b"")
    hub.ranges = False
    with pytest.raises(BadInputError, match="does not serve ranges"):
        store.read(address(hub, "big.jsonl"))
    monkeypatch.delenv("SSL_CERT_FILE")
    http_ranges._pool.cache_clear()
    with pytest.raises(ConfigurationError, match="cannot trust the server"):
        store.read(whole)
    with pytest.raises(TransientError, match="cannot reach the server"):
        store.read("https://127.0.0.1:1/a.jsonl#sha256=" + "0" * 64)


def test_a_recipe_names_such_files(hub: Hub) -> None:
    recipe = parse_recipe(
        f"""
categories: [a]
sources:
  - files: [{BOOKS}/data/0*.parquet, {address(hub, "lines/a.jsonl.gz")}]
    text: body
    category: a
""",
        "/recipes/recipe.yaml",
    )
    files, _ = file_list.find(recipe, "/recipes")
    assert [file.uri for file in files][4:] == [address(hub, "lines/a.jsonl.gz")]
    assert files[0].name == "datasets-owner-books-data-00"
    assert files[4].name.endswith("storage-lines-a")
    shard = file_list.shard_name(recipe.sources[0].outputs["train"], files[4].uri, "a", None)
    assert shard == "a_a"


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names; a range without its place."""

    asked = 0

    def do_GET(self) -> None:
        Odd.asked += 1
        status = int(self.path.strip("/"))
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ab")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(("status", "error", "requests"), [(503, TransientError, 6), (206, BadInputError, 1)])
def test_a_request_is_repeated_in_one_place(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception], requests: int
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        Odd.asked = 0
        with pytest.raises(error):
            http_ranges.fetch("x", f"http://127.0.0.1:{server.server_port}/{status}", 0, 10)
        server.shutdown()
    assert Odd.asked == requests


def test_a_redirect_to_http_is_refused() -> None:
    steps = [RequestHistory("GET", "https://a/x", None, 302, "http://a/x")]
    with pytest.raises(BadInputError, match="redirects to http"):
        http_ranges._check_redirects("https://a/x", "https://a/x", steps)
    http_ranges._check_redirects("https://a/x", "https://a/x", [steps[0]._replace(redirect_location="/y")])
