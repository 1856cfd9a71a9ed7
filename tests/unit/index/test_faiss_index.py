"""Indexes as the search inspects them."""

import gc
from pathlib import Path

import faiss
import numpy as np
import pytest

from retro_ops.index import faiss_files, faiss_index, filling


def test_queries_are_projected_after_the_index_is_dropped() -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    index = faiss.index_factory(32, "RR32,IVF4,Flat")
    index.train(vectors)
    index.add(vectors)
    expected = index.chain.at(0).apply(vectors)
    project = faiss_index.lists_of(index, np.arange(500)).project
    assert project is not None
    del index
    gc.collect()
    np.testing.assert_array_equal(project(vectors), expected)


TYPES = [
    *("Flat", "SQ4", "SQ8", "IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4", "IVF4,RaBitQ", "IVF4,RaBitQfs", "RaBitQ"),
    *("PQ8x4fs", "IVF4,PQ8x4fs", "IVF4,PQ8x4fsr", "PCA8,IVF4,PQ4x4fs"),
]


@pytest.mark.parametrize("index_type", TYPES)
def test_the_error_of_an_index_is_the_same_after_it_was_read(index_type: str) -> None:
    """faiss ends the process where it decodes codes of a fast-scan index that was read from a file."""
    vectors = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
    index = faiss.index_factory(16, index_type)
    index.train(vectors)
    index.add(vectors)
    expected = faiss_index.quantisation_error(index, vectors[:50].astype(np.float16))
    read = faiss.deserialize_index(faiss.serialize_index(index))
    assert faiss_index.quantisation_error(read, vectors[:50].astype(np.float16)) == expected
    assert expected is not None


@pytest.mark.parametrize("index_type", [of for of in TYPES if "fs" in of])
def test_a_file_holds_nothing_but_vectors(index_type: str, tmp_path: Path) -> None:
    """Merging allocates blocks whose unused places faiss does not clear: dirty memory must not reach the file."""
    rng = np.random.default_rng(0)
    trained = faiss.index_factory(16, index_type)
    trained.train(rng.standard_normal((600, 16)).astype(np.float32))
    parts = [rng.standard_normal((rows, 16)).astype(np.float32) for rows in (23, 30, 41)]
    saved = set()
    for byte in (0x00, 0xFF):
        whole = faiss.clone_index(trained)
        for part in parts:
            filled = faiss.clone_index(trained)
            filled.add(part)
            filling.merge(whole, filled, "part")
        found = list(faiss_index.unused(whole))
        for packer, block, places in found:
            for place in places:
                packer.pack_1(np.full(packer.code_size, byte, np.uint8), place, block)
        assert found
        faiss_files.save_index(whole, str(tmp_path / "a.index"))
        saved.add((tmp_path / "a.index").read_bytes())
    assert len(saved) == 1
    loaded = faiss_files.load_index(str(tmp_path / "a.index"))
    np.testing.assert_array_equal(loaded.search(parts[0], 3)[1], whole.search(parts[0], 3)[1])
