"""Runs whose index is larger than it may be in memory: every output as of a run that holds it whole."""

from pathlib import Path

import pytest
from nightly import Nights
from runs import compare

from retro_ops.index import index_types
from retro_ops.plan import digests, paths
from retro_ops.storage import store

LISTS = ("--index-type", "IVF8,Flat", "--max-drift", "9", "--min-recall", "0")
FILTERS = ("--max-overlap", "0.6", "--max-shared-run", "20")
LITTLE = ("--search-memory", "2KiB")


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(LISTS, id="plain", marks=pytest.mark.slow),
        pytest.param((*LISTS, *FILTERS), id="filtered"),
        pytest.param((*LISTS, "--profile", "seed"), id="seed"),
    ],
)
def test_an_index_in_parts_gives_what_the_whole_gives(
    nights: Nights, s3: str, flags: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    nights.root = f"{s3}/{len(flags)}"
    nights.flags = flags
    whole = nights.scratch()
    assert "part by part" not in capfd.readouterr().err
    nights.flags = (*flags, *LITTLE)
    parts = nights.first()
    said = capfd.readouterr().err
    assert said.count("so it is read part by part") >= 3  # tune-search, and retrieve-neighbours of both splits
    assert set(compare(parts, whole)[0].values()) == {1.0}
    for split in ("train", "val"):
        assert store.read(paths.index_uri(parts.plan, split)) == store.read(paths.index_uri(whole.plan, split))
        assert digests.neighbours_digest(parts.plan, parts.plan.shard("v")) == digests.neighbours_digest(
            whole.plan, whole.plan.shard("v")
        )


def test_a_refresh_in_parts(nights: Nights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # New chunks are searched by an index of their own, however few they are.
    monkeypatch.setattr(index_types, "FLAT_VECTORS", 0)
    nights.flags = ("--index-type", "IVF4,Flat", "--nprobe", "4", "--retrieval-margin", "4000", "--max-drift", "9")
    nights.first()
    nights.put("train/e")
    nights.remove("train/b")
    done = nights.refresh(*LITTLE)
    assert done.plan.base
    assert done.plan.parameters.search_memory == "2KiB"
    assert set(compare(done, nights.scratch())[0].values()) == {1.0}
    nights.put("train/g")
    # What a machine has room for is no property of the dataset.
    assert nights.refresh().plan.parameters.search_memory is None
