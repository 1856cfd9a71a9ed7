"""Neighbours of a whole run."""

import json
from pathlib import Path

from books import build, make_corpus, plan_of
from samples import Run, write_corpus

from retro_ops.plan import paths
from retro_ops.storage import store


def test_filters_are_applied_where_neighbours_are_retrieved(
    tmp_path: Path, run: Run, texts: list[str], small_model: str
) -> None:
    """A validation text that goes on where a training text ends: that one's chunks come first, unless filtered."""
    corpus = make_corpus(tmp_path / "corpus", texts)
    write_corpus(corpus / "val/val_a.jsonl", [texts[4] + " And so on.", texts[13]])
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model)
    card = json.loads(store.read(paths.card_uri(build(run, uri), "json")))
    assert card["quality"]["val"]["leaked"] > 0.1
    assert card["removed"]["val"]["shared_run"] == 0
    filtered = build(
        run, plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model, "--max-shared-run", "20")
    )
    card = json.loads(store.read(paths.card_uri(filtered, "json")))
    longest = card["quality"]["val"]["longest_shared_run"]
    size = filtered.parameters.chunk_size
    assert sum(n for n, low in zip(longest["rows"], longest["bins"], strict=False) if low * size > 20) == 0
    assert card["quality"]["val"]["leaked"] == 0
    assert card["removed"]["val"]["shared_run"] > 0
    assert card["removed"]["train"]["shared_run"] == 0
    assert card["quality"]["val"]["recall"] > 0.95
