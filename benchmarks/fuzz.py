"""Every parser against inputs that are mutations of right ones: a result, or a clear error; never a traceback, ten
seconds or a GiB of memory.

    python benchmarks/fuzz.py --executions 1000000 --seed 0

Seeds are small right inputs of each kind. A mutation flips, cuts, doubles, joins or inserts, also what parsers fear:
huge numbers, deep brackets, NaN, surrogates, headers. Inputs that fail are written to ``--findings``, one file each.
"""

import argparse
import contextlib
import gzip
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retro_ops.corpus import archives, json_lines, source_lines
from retro_ops.corpus.path_patterns import matcher
from retro_ops.corpus.recipes import shard_patterns, shipped
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.errors import RetroError
from retro_ops.execution import checkpoints, report
from retro_ops.plan import series, source_list, specs
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.plan.plan import plan_from_json, plan_to_json
from retro_ops.progress import logger
from retro_ops.storage import store
from retro_ops.storage.npy import open_npy

LONGEST_S = 10
MOST_MEMORY = 2**30
LONGEST_LINE = 2**20

FEARED = (
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"99999999999999999999999", b"0x", b"null", b"[]", b"{}", b'""', b"true"),
    *(
        b"[" * 600,
        b'{"a":' * 600,
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\r\n",
        b"\x1b[2J",
    ),
    *(b"../", b"/", b"**/" * 5, b"{1..999999999}", b"{a,b}" * 30, b"*a" * 20, b"[!", b"&a [*a]", b"<<: ", b"- " * 50),
    *(b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"ustar", b"\x93NUMPY", b"\x7f" * 8, b"\x80" * 8, b"9" * 5000),
)


@dataclass(frozen=True)
class Target:
    """``parse`` takes bytes; errors of ``clear`` are right answers."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    clear: tuple[type[Exception], ...] = (RetroError,)


def mutated(data: bytes, seeds: tuple[bytes, ...], rng: random.Random) -> bytes:
    """``data`` after one to four changes."""
    for _ in range(rng.randint(1, 4)):
        at, other = rng.randint(0, len(data)), rng.randint(0, len(data))
        start, end = min(at, other), max(at, other)
        kind = rng.randrange(8)
        if kind == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + rng.choice(FEARED) + data[at:]
        elif kind == 2:
            data = data[:start] + rng.choice(FEARED) + data[min(end, start + 12) :]
        elif kind == 3:
            data = data[:start] + data[min(end, start + 64) :]
        elif kind == 4:
            data = data[:end] + data[start:end][:4096] + data[end:]
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            splice = rng.choice(seeds)
            data = data[:at] + splice[rng.randint(0, len(splice)) :]
        else:
            data = data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at + rng.randint(0, 8) :]
    return data[: 2**20]


def _stored(name: str, parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """``parse`` of an object that holds the bytes."""
    uri = f"memory://fuzz/{name}"

    def of_bytes(data: bytes) -> object:
        store.write(uri, data)
        return parse(uri)

    return of_bytes


def _documents(uri: str) -> int:
    return sum(1 for where, n, line in archives.lines(uri, None, LONGEST_LINE, "text") if _record(line, where, n))


def _record(line: bytes | None, where: str, number: int) -> object:
    record = json_lines.parse(line, where, number, LONGEST_LINE)
    if isinstance(record, json_lines.Document):
        json.loads(json_lines.json_line(record.extra), parse_constant=lambda name: sys.exit(name))
    return record


def _array(uri: str) -> object:
    reader = open_npy(uri)
    return reader.rows(0, min(reader.shape[0], 1000))


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


def _values(text: str) -> None:
    for parameter in PARAMETERS.values():
        with contextlib.suppress(RetroError):
            parameter.parse(text)
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        for parameter in PARAMETERS.values():
            with contextlib.suppress(RetroError):
                parameter.check(value)


def _shard_pattern(text: str) -> None:
    for pattern in shard_patterns.split_patterns(text):
        shard_patterns.check_pattern(pattern)
        shard_patterns.matching(pattern, ["00_docs", "a" * 200])


def _bytes_of(make: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    make(buffer)
    return buffer.getvalue()


def _tar(mode: str) -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
            for name in ("a.jsonl", f"{'long' * 40}/b.jsonl"):
                member = tarfile.TarInfo(name)
                member.size = len(LINES)
                archive.addfile(member, io.BytesIO(LINES))

    return _bytes_of(write)


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = {
        "text": ["one", "two", None],
        "bin": [b"\xff", b"a", None],
        "n": [1.5, float("nan"), 2],
        "l": [[1], [], None],
    }
    return _bytes_of(lambda buffer: parquet.write_table(pyarrow.table(rows), buffer))


def _faiss() -> bytes:
    import faiss

    index = faiss.index_factory(8, "IVF4,Flat")
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    index.train(vectors)
    index.add(vectors)
    return bytes(faiss.serialize_index(index).tobytes())


LINES = b'{"text": "a", "id": 1}\n\n{"text": "b\\u00e9", "meta": {"x": [NaN, 1e3]}}\n{"no": 1}\n'


def targets() -> dict[str, Callable[[], Target]]:
    """Each is made where it runs: libraries that have started threads do not survive a fork."""
    from retro_ops.index import ivf_file
    from retro_ops.plan.parameters import Parameters
    from retro_ops.plan.plan import Base, BaseShard, Identity, Plan, Shard, Source

    shard = Shard("00_a", "train", (Source("s3://b/a.jsonl", 10, "etag:1:10"),))
    base = Base("versions/1", "t", "i", "u", (BaseShard("00_a", "train", 3, "e", "n"),))
    plan = plan_to_json(Plan("books", "s3://b/r", Parameters(), Identity("t", 30, 0, "m", 8), (shard,), base=base))
    spec = specs.IndexShard("a.npy", "b.npy", "c.npy", "d.npy")
    query = specs.DatasetShard("a.npy", "b.npy", "c.npy", "n.npy")
    dataset = specs.dataset_spec_to_json(specs.DatasetSpec((query,), "i.index", "x.json"), "/x/d.json")
    entries = {n: {"version": n, "path": f"v/{n}", "plan": "p", "published_at": "", "counts": {}} for n in (1, 2)}
    current = series.series_to_json(series.Series("/x/current.json", "t", 2, entries, 2))  # type: ignore[arg-type]
    sealed = report.sealed({"digest": "d", "outputs": [], "seconds": 1.0, "counts": {}, "identity": {}, "details": {}})
    arrays = [
        _bytes_of(lambda b, of=of: np.save(b, of)) for of in (np.zeros((3, 4), np.uint16), np.ones(5, np.float16))
    ]
    block = _bytes_of(lambda b: np.savez(b, chunks=np.zeros((2, 4), np.uint16), documents=np.zeros(3, np.uint8)))
    zst = zstandard.ZstdCompressor().compress(LINES)
    return {
        "JSON lines": lambda: Target(_stored("a.jsonl", _documents), (LINES,)),
        "gzip": lambda: Target(_stored("a.jsonl.gz", _documents), (gzip.compress(LINES),)),
        "zstd": lambda: Target(_stored("a.jsonl.zst", _documents), (zst, zst + zst)),
        "tar": lambda: Target(_stored("a.tar", _documents), (_tar("w"),)),
        "tar.gz": lambda: Target(_stored("a.tar.gz", _documents), (_tar("w:gz"),)),
        "Parquet": lambda: Target(_stored("a.parquet", _documents), (_parquet(),)),
        "estimate of a corpus": lambda: Target(
            _stored("b.jsonl.gz", lambda uri: source_lines.sample(uri, LONGEST_LINE, "text", 100)),
            (gzip.compress(LINES),),
        ),
        "recipe": lambda: Target(
            _text(lambda text: parse_recipe(text, "r.yaml")), (shipped.text("massive_open_text").encode(),)
        ),
        ".npy": lambda: Target(_stored("a.npy", _array), arrays),
        "plan": lambda: Target(lambda data: plan_from_json(data, "plan.json"), (plan.encode(),)),
        "list of sources": lambda: Target(lambda data: source_list.from_json(data, "s.json"), (SOURCES,)),
        "index spec": lambda: Target(
            lambda data: specs.index_spec_from_json(data, "/x/s.json"),
            (specs.index_spec_to_json([spec], "/x/s").encode(),),
        ),
        "dataset spec": lambda: Target(
            lambda data: specs.dataset_spec_from_json(data, "/x/d.json"), (dataset.encode(),)
        ),
        "current.json": lambda: Target(
            lambda data: series.series_from_json((data, "t"), "/x/current.json"), (current.encode(),)
        ),
        "report": lambda: Target(_stored("report.json", report.read), (sealed,)),
        "checkpoint": lambda: Target(_stored("00000.npz", checkpoints._read), (block,)),
        "list file of faiss": lambda: Target(_stored("a.index", ivf_file.open_lists), (_faiss(),)),
        "values of a form": lambda: Target(_text(_values), (b"64", b'"8GiB"', b"0.5", b"IVF64,Flat", b"auto", b"true")),
        "pattern of shards": lambda: Target(
            _text(_shard_pattern), (b"{00..08}_*,[ab]?", b"a*b,c"), (RetroError, ValueError)
        ),
        "pattern of files": lambda: Target(
            _text(lambda text: matcher(text)("a/b/c/d/00.jsonl")), (b"a/**/{00..29}.jsonl*",)
        ),
    }


SOURCES = json.dumps(
    {
        "format": 1,
        "root": "s3://b",
        "dataset": "d",
        "recipe": "r",
        "text": "t",
        "folder": "f",
        "given_folder": None,
        "files": [{"name": "a", "uri": "u", "bytes": 1, "fingerprint": "e", "rule": 0, "digest": "x"}],
        "on_bad_record": "fail",
        "max_bad_share": 0.5,
        "line_bytes": 9,
        "memory_budget": "2GiB",
        "absent": [],
    }
).encode()


@dataclass
class Findings:
    """What went wrong with a target: the error, and the input."""

    executions: int = 0
    slowest_s: float = 0.0
    found: list[tuple[str, bytes]] = field(default_factory=list)


def fuzz(target: Target, executions: int, seed: int) -> Findings:
    """Run ``executions`` mutations, drawn from ``seed``. Stops after ten findings."""
    rng, findings, pool = random.Random(seed), Findings(), list(target.seeds)
    for _ in range(executions):
        data = mutated(rng.choice(pool), target.seeds, rng)
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
        try:
            target.parse(data)
            if len(pool) < 200 and rng.random() < 0.05:
                pool.append(data)  # What passes is worth changing further.
        except target.clear:
            pass
        except (Exception, SystemExit) as error:
            findings.found.append((f"{type(error).__name__}: {str(error)[:200]}", data))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        findings.executions += 1
        findings.slowest_s = max(findings.slowest_s, time.monotonic() - started)
        if len(findings.found) == 10:
            break
    return findings


def _slow(number: int, frame: Any) -> None:
    raise TimeoutError(f"longer than {LONGEST_S} s")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """With a limit on memory and time in this process, and without logs."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler, disabled = signal.signal(signal.SIGALRM, _slow), logger.disabled
    logger.disabled = True
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)
        logger.disabled = disabled


def _in_child(name: str, executions: int, seed: int, answer: Any) -> None:
    target = targets()[name]()
    with guarded():
        answer.send(fuzz(target, executions, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=100_000, help="in all, spread over the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="this target alone")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for inputs that fail")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(targets())
    total, wrong = 0, 0
    for name in names:
        parent, child = multiprocessing.get_context("fork").Pipe()
        work = (name, arguments.executions // len(names), arguments.seed, child)
        process = multiprocessing.get_context("fork").Process(target=_in_child, args=work)
        process.start()
        child.close()
        try:
            findings = parent.recv()
        except EOFError:  # A crash of native code.
            process.join()
            findings = Findings(0, 0.0, [(f"the process ended with {process.exitcode}", b"")])
        process.join()
        total, wrong = total + findings.executions, wrong + len(findings.found)
        print(f"{name:22} {findings.executions:9,} executions, slowest {findings.slowest_s:6.3f} s: ", end="")
        print(f"{len(findings.found)} findings", flush=True)
        for number, (error, data) in enumerate(findings.found):
            arguments.findings.mkdir(parents=True, exist_ok=True)
            (arguments.findings / f"{name.replace(' ', '-')}-{number}").write_bytes(data)
            print(f"    {error}")
    print(f"{total:,} executions, {wrong} findings")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
