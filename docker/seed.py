"""Uploads a small corpus of real text to the object store, unless it is already there."""

import tempfile
from pathlib import Path

import make_corpus

from retro_ops.storage import store

CORPUS = "s3://retro/corpus"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path in make_corpus.write(Path(folder)):
            uri = f"{CORPUS}/{path.relative_to(folder).as_posix()}"
            if store.exists(uri):
                print(f"{uri} already exists")
            else:
                print(f"{uri}: {store.write(uri, path.read_bytes()).bytes:,} bytes")


main()
