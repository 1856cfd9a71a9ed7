"""Reads and writes faiss index files in the store, by a scratch file for S3: faiss takes local files only."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import faiss

from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index
from retro_ops.index.ivf_file import table_flags
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.uris import split_scheme

COPY_BYTES = 8 * 2**20


def load_index(uri: str, *, search: bool = True) -> Any:
    """The index at ``uri``, in memory. BadInputError if the file is not an index.

    ``search``: whether it will search, for which faiss computes a table.
    """
    with tempfile.TemporaryDirectory(prefix="retro-ops-") as scratch:
        path = uri
        if split_scheme(uri)[0]:
            path = f"{scratch}/index"
            with store.open_stream(uri) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
        else:
            store.at(uri).size(uri)
        try:
            return faiss.read_index(path, table_flags(search))
        except RuntimeError as error:
            raise BadInputError(f"{uri} is not a faiss index: {error}", "it may be cut off: build it again") from error


def save_index(index: Any, uri: str) -> Written:
    """Write ``index``, with the same bytes whenever it holds the same vectors."""
    faiss_index.clear_unused(index)
    with tempfile.TemporaryDirectory(prefix="retro-ops-") as scratch:
        path = Path(scratch, "index")
        faiss.write_index(index, str(path))
        with store.create(uri, path.stat().st_size) as writer:
            with path.open("rb") as file:
                while data := file.read(COPY_BYTES):
                    writer.write(data)
            return writer.close()
