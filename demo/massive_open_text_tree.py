"""Writes a small Pile and RealNews with the files, compression and fields of the real ones, filled with real text.

The text comes from the Python installation: the language reference, docstrings and sources of the standard library, cut
into passages. The same Python version gives the same bytes. Next to the tree it writes ``massive_open_text.yaml``, the
shipped recipe with the size of RealNews shards adapted to the tree.
"""

import argparse
import gzip
import itertools
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.make_corpus import code_records, docs_records
from retro_ops.corpus.recipes import shipped

SHARDS = 30
PILE = {"wikipedia_en": "Wikipedia (en)", "github": "Github", "pile_cc": "Pile-CC", "books3": "Books3"}
OTHER_SETS = (
    *("ArXiv", "BookCorpus2", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Gutenberg (PG-19)"),
    *("HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "PubMed Abstracts"),
    *("PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "YoutubeSubtitles"),
)
"""A subset of the Pile that is in no category."""

PASSAGE = 700
"""Characters per document, about three chunks."""

REST = 3
"""Validation documents of RealNews in excess of the recipe's limit."""


def passages(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Passages of real text, repeated without end and cut at other places each time."""
    for start in range(0, PASSAGE, 101):
        for record in records:
            text = record["text"]
            pieces = (text[at : at + PASSAGE].strip() for at in range(start, len(text), PASSAGE))
            yield from (piece for piece in pieces if len(piece) > PASSAGE // 2)
    sys.exit("A tree of this size needs more text than Python carries: ask for fewer documents")


def texts_of_categories() -> dict[str, Iterator[str]]:
    """Passages for each category; no two categories share one."""
    prose = list(docs_records())
    others = ("wikipedia_en", "pile_cc", "books3", "realnews", "rest")
    dealt = {name: itertools.islice(passages(prose), n, None, len(others)) for n, name in enumerate(others)}
    return {**dealt, "github": passages(list(code_records()))}


def write(folder: Path, documents: int, shards: int = SHARDS) -> Path:
    """Write the tree with ``documents`` per shard, and return the path of the recipe next to it."""
    texts = texts_of_categories()
    names = [f"train/{number:02}" for number in range(shards)] + ["val"]
    for name in names:
        path = folder / f"Pile/{name}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.ZstdCompressor().compress(b"".join(_pile_lines(texts, documents))))
    _write_realnews(folder / "RealNews/realnews.tar.gz", texts["realnews"], documents, shards)
    recipe = folder / "massive_open_text.yaml"
    text = shipped.text("massive_open_text") or ""
    text = text.replace("1040000", str(documents)).replace("16400", str(documents))
    recipe.write_text(text.replace("{00..29}.jsonl", f"{{00..{shards - 1:02}}}.jsonl"))
    return recipe


def _pile_lines(texts: dict[str, Iterator[str]], documents: int) -> Iterator[bytes]:
    """Lines of all subsets, mixed as in the Pile."""
    for number in range(documents):
        for category, name in PILE.items():
            yield _line({"text": next(texts[category]), "meta": {"pile_set_name": name}})
        other = OTHER_SETS[number % len(OTHER_SETS)]
        yield _line({"text": next(texts["rest"]), "meta": {"pile_set_name": other}})


def _write_realnews(path: Path, texts: Iterator[str], documents: int, shards: int) -> None:
    sides = ["train"] * (documents * shards)
    # Validation documents are mixed with the others, as in RealNews.
    for number in range(documents + REST):
        sides.insert(number * (shards + 1), "val")
    content = b"".join(_line(_news(number, side, next(texts))) for number, side in enumerate(sides))
    member = tarfile.TarInfo("realnews/realnews.jsonl")
    member.size = len(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.addfile(member, BytesIO(content))


def _news(number: int, side: str, text: str) -> dict[str, Any]:
    url = f"https://news.example/{number}"
    return {
        "url": url,
        "url_used": url,
        "title": text.split("\n")[0][:80],
        "text": text,
        "summary": None,
        "authors": [],
        "publish_date": "01-01-2019",
        "domain": "news.example",
        "warc_date": "20190101000000",
        "status": "success",
        "split": side,
    }


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents-per-shard", type=int, default=16)
    parser.add_argument("--shards", type=int, default=SHARDS, help="training shards per category")
    arguments = parser.parse_args()
    recipe = write(arguments.folder, arguments.documents_per_shard, arguments.shards)
    files = [path for path in arguments.folder.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes; recipe: {recipe}")


if __name__ == "__main__":
    main()
