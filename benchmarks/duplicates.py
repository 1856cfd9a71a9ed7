"""Duplicates: speed of signing on one core with rensa and (if installed) datasketch, and of the search.

The signed text is that of the Python files of this environment. The searched documents are random words, a fifth of
them copies with some changed words, in shards that are signed and searched as in the stages.
"""

import argparse
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray

from retro_ops.duplicates import document_pairs, lsh, minhash
from retro_ops.duplicates.signatures import SignatureWriter, Signed, SignedShards
from retro_ops.execution import report

DOCUMENT_CHARACTERS = 4000
FILES = ("signatures", "contents", "records")


def documents(most_bytes: int) -> list[str]:
    found: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text(errors="replace")
        for start in range(0, len(text), DOCUMENT_CHARACTERS):
            found.append(text[start : start + DOCUMENT_CHARACTERS])
            size += len(found[-1])
        if size >= most_bytes:
            break
    return found


def by_datasketch(texts: list[str]) -> None:
    from datasketch import MinHash

    permutations = MinHash(minhash.PERMUTATIONS).permutations
    for text in texts:
        sketch = MinHash(permutations=permutations, num_perm=minhash.PERMUTATIONS, scheme="affine32")
        sketch.update_batch([gram.encode() for gram in minhash.ngrams(text)])


def timed(name: str, work: Callable[[list[str]], object], texts: list[str]) -> None:
    started = time.process_time()
    work(texts)
    seconds = time.process_time() - started
    size = sum(map(len, texts)) / 1e6
    print(f"{name:28}{len(texts):>9,} documents{len(texts) / seconds:>10,.0f}/s{size / seconds:>8.1f} MB/s", flush=True)


def random_signatures(count: int, seed: int) -> NDArray[np.uint32]:
    """Signatures of random documents; a fifth are copies of earlier ones with a similarity of 0.9."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 2**32, (count, minhash.PERMUTATIONS), dtype=np.uint32)
    copies = np.flatnonzero(rng.random(count) < 0.2)[1:]
    kept = rng.random((len(copies), minhash.PERMUTATIONS)) < 0.9
    made[copies] = np.where(kept, made[(copies * rng.random(len(copies))).astype(np.int64)], made[copies])
    return made


def search(folder: Path, shards: int, count: int, budget: int) -> None:
    files = []
    for number in range(shards):
        of = {name: str(folder / f"{number}/{name}.npy") for name in FILES}
        with SignatureWriter(of, None, budget) as out:
            contents = np.random.default_rng(number).integers(0, 2**63, count).astype(np.uint64)
            made = random_signatures(count, number)
            no_overlaps = np.zeros((0, 3), np.int64)
            out.append(Signed("x", count, np.arange(count, dtype=np.int64), contents, made, no_overlaps))
            out.close()
        files.append(of)
    del made, contents
    started = time.monotonic()
    signed = SignedShards(files)
    alike = lsh.find(signed, 0.8, budget, lambda _: None)
    found, clusters = document_pairs.clusters(document_pairs.joined([alike.exact, alike.near]))
    seconds = time.monotonic() - started
    peak = report.peak_rss_bytes() / 2**20
    repeated = len(found) - int(clusters.max(initial=-1)) - 1
    print(
        f"{signed.total:,} documents in {shards} shards, budget {budget / 2**20:,.0f} MiB: {repeated:,} repeat others, "
        f"{alike.compared:,} pairs compared, {seconds:.1f} s, peak memory of the process {peak:,.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--documents", type=int, default=50_000, help="documents per shard")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[64, 1024],
        help="memory budgets in MiB; each runs in a process of its own",
    )
    options = parser.parse_args()
    texts = documents(options.megabytes * 10**6)
    timed("words and 5-grams", lambda of: [minhash.ngrams(text) for text in of], texts)
    timed("rensa, all together", minhash.signatures, texts)
    try:
        timed("datasketch, all together", by_datasketch, texts[:: max(1, len(texts) // 500)])
    except ImportError:
        print("datasketch is not installed", file=sys.stderr)
    for budget in options.budgets:
        with tempfile.TemporaryDirectory() as scratch:
            if (child := os.fork()) == 0:
                search(Path(scratch), options.shards, options.documents, budget * 2**20)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
