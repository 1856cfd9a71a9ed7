"""Writes real text of several categories as JSON lines, from Debian's documentation packages and Python's sources.

Needs Debian (`apt-get download`, `dpkg-deb`). Nothing is installed, and no text is kept in the repository.
"""

import argparse
import gzip
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = {
    "books": ("anarchism", "debian-handbook"),
    "encyclopaedia": ("dict-gcide", "dict-foldoc", "dict-jargon"),
    "technical": ("postgresql-doc-15", "python3.11-doc", "git-doc", "perl-doc"),
    "manuals": ("manpages", "manpages-dev"),
    "code": (),
}

CATEGORY_BYTES = 13_000_000
"""Bytes of text per category; five categories give more than 200,000 chunks of 64 word pieces."""

LEAST_CHARACTERS = 200
VALIDATION_EVERY = 50


class _Text(HTMLParser):
    SKIPPED = ("script", "style", "head", "nav")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._skipping += tag in self.SKIPPED

    def handle_endtag(self, tag: str) -> None:
        self._skipping -= tag in self.SKIPPED and self._skipping > 0

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self.parts.append(data)


def html_text(source: str) -> str:
    parser = _Text()
    parser.feed(source)
    return re.sub(r"\n{3,}", "\n\n", "".join(parser.parts)).strip()


def manual_text(source: str) -> str:
    """The text of a manual page without its markup."""
    lines = (re.sub(r"^\.\w+ ?", "", line) for line in source.splitlines() if not line.startswith((".\\", "'\\")))
    return re.sub(r"\\f.|\\-|\\&|\\", "", "\n".join(lines)).strip()


def entries(source: str) -> Iterator[str]:
    """Entries of a dictionary, which start at the beginning of a line and continue indented."""
    entry: list[str] = []
    for line in source.splitlines():
        if line and not line[0].isspace() and entry:
            yield "\n".join(entry)
            entry = []
        entry.append(line)
    yield "\n".join(entry)


def fetch(package: str, folder: Path) -> Path:
    unpacked = folder / "packages" / package
    if not unpacked.exists():
        for name in ("debs", "packages"):
            folder.joinpath(name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder / "debs", check=True, capture_output=True)
        (archive,) = (folder / "debs").glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    return unpacked


def texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        opened = gzip.open if path.suffix in (".gz", ".dz") else open
        name = path.name.removesuffix(".gz").removesuffix(".dz")
        kind = Path(name).suffix
        with opened(path, "rb") as file:  # type: ignore[operator]
            source = file.read().decode(errors="replace")
        if kind in (".html", ".htm"):
            yield html_text(source)
        elif path.suffix == ".dz":
            yield from entries(source)
        elif re.fullmatch(r"\.\d\w*", kind):
            yield manual_text(source)
        elif kind in (".txt", ".pod", ".py"):
            yield source


def documents(category: str, folder: Path) -> Iterator[str]:
    left = CATEGORY_BYTES
    roots = [fetch(package, folder) for package in PACKAGES[category]]
    for root in roots or [Path(sysconfig.get_paths()["stdlib"])]:
        for text in texts(root):
            if len(text) >= LEAST_CHARACTERS:
                left -= len(text)
                if left < 0:
                    return
                yield text


def write(folder: Path) -> list[Path]:
    """Write ``train/CATEGORY.jsonl`` and ``val/val_CATEGORY.jsonl`` and return their paths."""
    files = []
    for category in PACKAGES:
        paths = [folder / f"train/{category}.jsonl", folder / f"val/val_{category}.jsonl"]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        with paths[0].open("w") as train, paths[1].open("w") as val:
            for number, text in enumerate(documents(category, folder)):
                out = val if number % VALIDATION_EVERY == VALIDATION_EVERY - 1 else train
                out.write(json.dumps({"text": text, "category": category}) + "\n")
        files += paths
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for path in write(parser.parse_args().folder):
        print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
