"""The cost of adding 1 % to a corpus: a refresh and a build with stored embeddings, compared with a full build.

Real text (see real_text.py) is cut into shards of equal size, and a shard of 1 % of the text is added later. The full
build is the one before that. Prints the seconds of each stage, summed over shards, in this process, so without
Airflow and without the start of containers.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.whole_run import Run, in_child, run, warm
from retro_ops.plan import paths

DATASET = "growing"
FULL = "full build"


def documents(folder: Path, most_bytes: int) -> Iterator[str]:
    """Lines of all categories in turn, up to ``most_bytes`` in total."""
    files = [path.open() for path in sorted(folder.glob("train/*.jsonl"))]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*files))
    taken = 0
    for line in (line for line in turns if line):
        taken += len(line)
        if taken > most_bytes:
            return
        yield line


def write(corpus: Path, lines: list[str], shards: int) -> list[str]:
    """Write all but 1 % of the text to ``shards`` files, and return the rest."""
    total, cut, used = sum(map(len, lines)), 0, 0
    while used < total / 1.01:
        used += len(lines[cut])
        cut += 1
    corpus.mkdir(parents=True)
    for number in range(shards):
        (corpus / f"{number:02}_text.jsonl").write_text("".join(lines[:cut][number::shards]))
    return lines[cut:]


def recall(done: Run) -> float:
    card = json.loads(Path(paths.card_uri(done.plan, "json")).read_text())
    return float(card["quality"]["train"]["recall"])


def table(runs: dict[str, Run]) -> None:
    full = runs[FULL]
    print(f"{'stage':22}" + "".join(f"{name:>20}" for name in runs))
    for stage in dict.fromkeys(stage for done in runs.values() for stage in done.seconds):
        print(f"{stage:22}" + "".join(f"{done.seconds[stage]:18.1f} s" for done in runs.values()))
    print(f"{'all':22}" + "".join(f"{done.total:18.1f} s" for done in runs.values()))
    print(f"{'of the full build':22}" + "".join(f"{done.total / full.total:20.2%}" for done in runs.values()))
    cpu = {name: done.cpu_seconds.total() for name, done in runs.items()}
    print(f"{'CPU':22}" + "".join(f"{seconds:18.1f} s" for seconds in cpu.values()))
    print(f"{'of the full build':22}" + "".join(f"{seconds / cpu[FULL]:20.2%}" for seconds in cpu.values()))
    print(f"{'recall':22}" + "".join(f"{recall(done):20.4f}" for done in runs.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder to work in")
    parser.add_argument("--text", type=Path, required=True, help="folder that real_text.py wrote")
    parser.add_argument("--model", required=True, help="folder of a sentence-transformer with its tokenizer")
    parser.add_argument("--megabytes", type=float, default=16, help="megabytes of text to use")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument(
        "--only-refresh", action="store_true", help="do not remove the new shard again and do not rebuild"
    )
    arguments = parser.parse_args()
    corpus = arguments.folder / "corpus"
    lines = list(documents(arguments.text, int(arguments.megabytes * 1e6)))
    left = write(corpus, lines, arguments.shards)
    flags: list[object] = ["--corpus", corpus, "--tokenizer", arguments.model, "--model", arguments.model]
    log = (arguments.folder / "log").open("w")
    os.dup2(log.fileno(), 2)
    warm()

    def done(name: str, *more: object) -> Run:
        finished = in_child(partial(run, str(arguments.folder / "root"), DATASET, name, *more))
        assert finished is not None
        return finished

    made = {FULL: done("full", *flags)}
    (corpus / "50_new.jsonl").write_text("".join(left))
    made["refresh"] = done("refresh", "--refresh")
    again = done("idle", "--refresh")
    if not arguments.only_refresh:
        (corpus / "50_new.jsonl").unlink()
        made["one shard less"] = done("less", "--refresh")
        (corpus / "50_new.jsonl").write_text("".join(left))
        made["stored embeddings"] = done("rebuilt", *flags)
    counts = json.loads(Path(paths.manifest_uri(made["refresh"].plan)).read_text())["shards"]
    chunks = {shard["name"]: shard["counts"]["chunks"] for shard in counts}
    total = sum(chunks.values())
    print(
        f"{total:,} chunks in {len(chunks)} shards, {chunks['50_new']:,} of them new ({chunks['50_new'] / total:.2%})"
    )
    table(made)
    print(f"a refresh without changes: {again.total:.1f} s")


if __name__ == "__main__":
    main()
