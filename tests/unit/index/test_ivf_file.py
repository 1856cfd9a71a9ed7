"""Index files read list by list: the bytes and the results of one that is loaded whole."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import unit_vectors

from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.index import faiss_index, filling, ivf_file, training
from retro_ops.index.faiss_files import load_index
from retro_ops.memory import MemoryLimit
from retro_ops.search import faiss_search, ivf_parts

TYPES = ("IVF64,PQ8", "IVF64,Flat", "RR32,IVF64,PQ8", "PCAR16,IVF64,RaBitQ", "IVF2048,Flat")
CUTS = (0, 2000, 2000, 4100, 4105, 6000)
CPU = Device("cpu", "a test")
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    made = unit_vectors(6000, 32, seed=1).astype(np.float32)
    made[3000:3300] = made[100:400]  # Copies, whose codes are equally far from any query.
    return made


Built = tuple[Any, list[str]]


def build(folder: Path, index_type: str, vectors: NDArray[np.float32]) -> Built:
    """The index as faiss merges it in memory, and the files of the trained and of the partial ones."""
    index = faiss.index_factory(32, index_type)
    training.train(index, vectors, 0, index_type, CPU)
    files = [str(folder / "trained.index")]
    faiss.write_index(index, files[0])
    for start, end in itertools.pairwise(CUTS):
        part = faiss.read_index(files[0])
        part.add(vectors[start:end])
        files.append(str(folder / f"{start}-{end}.index"))
        faiss.write_index(part, files[-1])
    for uri in files[1:]:
        filling.merge(index, faiss.read_index(uri), uri)
    return index, files


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, vectors: NDArray[np.float32]) -> Callable[[str], Built]:
    """``build``, once for each index type: its files are only read."""
    return functools.cache(lambda index_type: build(tmp_path_factory.mktemp("index"), index_type, vectors))


def opened(uri: str) -> ivf_file.ListFile:
    found = ivf_file.open_lists(uri)
    assert found
    return found


@pytest.mark.parametrize("index_type", [*TYPES, "IVF64,PQ1"])
def test_merged_on_disk_are_the_bytes_of_a_merge_in_memory(
    tmp_path: Path, index_type: str, built: Callable[[str], Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, (trained, *parts) = built(index_type)
    faiss.write_index(whole, str(tmp_path / "whole"))
    for most_bytes, pieces in ((9_000, 2**16), (10**9, 2**16), (10**9, 17)):
        monkeypatch.setattr(ivf_file, "PIECES_AT_ONCE", pieces)
        ivf_file.merge(opened(trained), [opened(uri) for uri in parts], str(tmp_path / "merged"), most_bytes)
        assert (tmp_path / "merged").read_bytes() == (tmp_path / "whole").read_bytes()
    # A filled index grows in the same way.
    ivf_file.merge(opened(trained), [opened(uri) for uri in parts[:3]], str(tmp_path / "first"), 30_000)
    ivf_file.merge(opened(str(tmp_path / "first")), [opened(u) for u in parts[3:]], str(tmp_path / "then"), 30_000)
    assert (tmp_path / "then").read_bytes() == (tmp_path / "whole").read_bytes()
    assert opened(str(tmp_path / "then")).numbers(10_000).tolist() == faiss_index.list_numbers(whole).tolist()


@pytest.mark.parametrize("index_type", TYPES)
def test_parts_find_what_the_whole_finds(
    tmp_path: Path, index_type: str, vectors: NDArray[np.float32], built: Callable[[str], Built]
) -> None:
    whole, (_, *parts) = built(index_type)
    faiss.write_index(whole, str(tmp_path / "whole"))
    queries = unit_vectors(60, 32, seed=2).astype(np.float32)
    queries[:20] = vectors[100:120]
    search = faiss_search.searcher(whole, CPU, shard_over_gpus=False)
    for width, nprobe in ((20, 4), (100, 64), (3000, 1)):
        distances, ids = search(queries, width, nprobe)
        for files in ([str(tmp_path / "whole")], parts):
            for bytes_at_once in (100_000, 10**9):
                coarse = ivf_parts.in_parts([opened(uri) for uri in files], bytes_at_once)
                found_distances, found = coarse(queries, width, nprobe)
                assert (found_distances[:, 1:] >= found_distances[:, :-1]).all()
                for row in range(len(queries)):
                    # faiss rounds the distances of codes by how many it computes at once: only the last may differ.
                    there, here = ids[row] >= 0, found[row] >= 0
                    last = distances[row][there].max() - ROUNDING
                    assert set(ids[row][there & (distances[row] < last)]) <= set(found[row][here])
                    assert set(found[row][here & (found_distances[row] < last)]) <= set(ids[row][there])
                    assert (found[row] >= 0).sum() == (ids[row] >= 0).sum()


def test_what_is_not_of_lists_or_not_whole_is_left_to_faiss(
    tmp_path: Path, vectors: NDArray[np.float32], built: Callable[[str], Built]
) -> None:
    for index_type in ("Flat", "IVF16,PQ8x4fs", "IVF16,PQ8+8"):
        index = faiss.index_factory(32, index_type)
        index.train(vectors[:512])
        index.add(vectors[:512])
        faiss.write_index(index, str(tmp_path / "other"))
        assert ivf_file.open_lists(str(tmp_path / "other")) is None
        assert ivf_file.open_if_larger_than(MemoryLimit(1, "a test"), [str(tmp_path / "other")]) is None
    _, (trained, first, *_) = built("IVF64,PQ8")
    cut = tmp_path / "cut"
    cut.write_bytes(Path(first).read_bytes()[:-8])
    assert ivf_file.open_lists(str(cut)) is None
    assert ivf_file.open_if_larger_than(MemoryLimit(2**30, "a test"), [trained]) is None
    assert ivf_file.open_if_larger_than(MemoryLimit(1, "a test"), [trained])


def test_the_trained_part_of_equal_files_is_in_memory_once(tmp_path: Path, built: Callable[[str], Built]) -> None:
    _, (trained, *parts) = built("IVF64,PQ8")
    files = ivf_file.open_if_larger_than(MemoryLimit(1, "a test"), [trained, *parts])
    assert files
    assert {id(file.trained) for file in files} == {id(files[0].trained)}
    assert ivf_file.merge(files[0], files[1:], str(tmp_path / "merged"), 10**6).bytes > files[0].first
    _, (other, *_) = built("IVF64,Flat")
    found = ivf_file.open_lists(other, files[0])
    assert found
    assert found.trained != files[0].trained


def test_without_a_search_faiss_computes_no_table(built: Callable[[str], Built], vectors: NDArray[np.float32]) -> None:
    _, (_, first, *_) = built("IVF64,PQ8")
    for read in (functools.partial(load_index, first), opened(first).empty):
        with_table, without = read(), read(search=False)
        assert without.precomputed_table.size() == 0 < with_table.precomputed_table.size()
        assert np.array_equal(with_table.sa_encode(vectors[:100]), without.sa_encode(vectors[:100]))
        for index in (with_table, without):
            index.reset()
            index.add(vectors)
        assert np.array_equal(faiss.serialize_index(with_table), faiss.serialize_index(without))


def test_parts_of_another_index_are_refused(
    tmp_path: Path, vectors: NDArray[np.float32], built: Callable[[str], Built]
) -> None:
    _, (trained, *_) = built("IVF64,Flat")
    _, (_, other, *_) = build(tmp_path, "IVF64,Flat", vectors[::-1].copy())
    with pytest.raises(BadInputError, match="one trained index"):
        ivf_file.merge(opened(trained), [opened(other)], str(tmp_path / "merged"), 10**6)
