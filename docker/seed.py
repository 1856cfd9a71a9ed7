"""Puts a small corpus of real text into the object store, unless there is one already."""

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
                print(f"{uri} is there")
            else:
                print(f"{uri}: {store.write(uri, path.read_bytes()).bytes:,} bytes")


main()
