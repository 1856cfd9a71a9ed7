"""The card: every figure computed again from the arrays, the plain way."""

import json
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from books import arrays_of, build, make_corpus, plan_of
from samples import Run, write_corpus

from retro_ops.plan import paths
from retro_ops.plan.parameters import PARAMETERS
from retro_ops.storage import store


def _words(tokens: np.ndarray, pad_id: int) -> list[int]:
    found = [int(token) for token in tokens]
    while found and found[-1] == pad_id:
        found.pop()
    return found


def test_every_figure_of_the_card_can_be_had_from_the_arrays(
    tmp_path: Path, run: Run, texts: list[str], small_model: str
) -> None:
    """A sample as large as the dataset, so that the figures are those of all rows; computed here the plain way."""
    corpus = make_corpus(tmp_path / "corpus", [*texts[:14], texts[3]])  # A validation document that is in training too.
    write_corpus(corpus / "train/02_b.jsonl", [texts[0] + " The end.", texts[15]])
    uri = plan_of(run, str(tmp_path / "root"), str(corpus), small_model, small_model, "--recall-sample", "100000")
    plan = build(run, uri)
    found, card = arrays_of(plan), json.loads(store.read(paths.card_uri(plan, "json")))
    assert card["totals"]["chunks"] == sum(len(found[f"{shard.name}/chunks"]) for shard in plan.shards)
    assert card["totals"]["documents"] == sum(len(found[f"{shard.name}/seq2chunk"]) for shard in plan.shards)
    assert {(row["category"], row["split"]): row["shards"] for row in card["contents"]} == {
        ("a", "train"): 1, ("b", "train"): 2, ("val_a", "val"): 1,
    }  # fmt: skip
    for split in plan.splits():
        shards = [shard.name for shard in plan.indexed(split)]
        chunks = np.concatenate([found[f"{name}/chunks"] for name in shards])
        vectors = np.concatenate([found[f"{name}/embeddings"] for name in shards]).astype(np.float64)
        owners = np.concatenate(
            [np.load(paths.document_ids_uri(paths.chunks_files(plan, name)["chunks"])) for name in shards]
        )
        starts = dict(zip(shards, np.cumsum([0, *(len(found[f"{name}/chunks"]) for name in shards)]), strict=False))
        by_category: dict[str, list[tuple[int, list[int]]]] = {}
        of_rows: dict[int, dict[str, float]] = {}
        for shard in plan.queried(split):
            for row, near in enumerate(found[f"{shard.name}/neighbours"].tolist()):
                of = by_category.setdefault(shard.name.split("_", 1)[1] if split == "train" else shard.name, [])
                of.append((int(starts[shard.name]) + row, near))
        figures = card["quality"][split]
        for name, rows in by_category.items():
            hits = wanted = 0
            pairs: list[tuple[bool, bool, bool]] = []
            leaked = []
            for own, near in rows:
                ranked = sorted((float(np.float32(((vectors[own] - x) ** 2).sum())), i) for i, x in enumerate(vectors))
                true = [i for _, i in ranked if owners[i] != owners[own]][: plan.parameters.num_neighbours]
                hits, wanted = hits + len(set(true) & set(near)), wanted + len(true)
                of_rows[own] = {"lowest_recall": len(set(true) & set(near)) / max(1, len(true))}
                mine, longest = _words(chunks[own], plan.identity.pad_id), 0
                for other in [i for i in near if i >= 0]:
                    theirs = _words(chunks[other], plan.identity.pad_id)
                    common = (Counter(mine) & Counter(theirs)).total() / max(len(mine), len(theirs))
                    pairs.append((bool(owners[own] == owners[other]), common > 0.8, mine == theirs))
                    longest = max(
                        longest, SequenceMatcher(None, mine, theirs, autojunk=False).find_longest_match().size
                    )
                leaked.append(longest / chunks.shape[1] > 0.5)
                of_rows[own]["leaked"] = longest / chunks.shape[1]
                of_rows[own]["identical"] = max((pair[2] for pair in pairs[-len(near) :]), default=False)
            said = figures["categories"][name]
            assert said["rows"] == said["sampled_rows"] == len(rows)
            assert said["recall"] == pytest.approx(hits / wanted)
            assert said["full_rows"] == pytest.approx(np.mean([min(near) >= 0 for _, near in rows]))
            shares = [said["same_document"], said["near_duplicate"], said["identical"]]
            assert shares == pytest.approx(np.mean(pairs, axis=0).tolist())
            assert said["leaked"] == pytest.approx(np.mean(leaked))
        for kind, listed in figures["worst"].items():
            values = [of_rows[int(starts[entry["shard"]]) + entry["row"]][kind] for entry in listed]
            assert [entry["value"] for entry in listed] == pytest.approx(values, abs=1e-4)
            chosen = {"lowest_recall": lambda v: v < 1, "identical": bool, "leaked": lambda v: v > 0.5}[kind]
            assert len(listed) == min(20, sum(chosen(of[kind]) for of in of_rows.values()))
            assert values == sorted(values, reverse=kind != "lowest_recall")
        total = sum(map(len, by_category.values()))
        mean = sum(figures["categories"][name]["leaked"] * len(rows) for name, rows in by_category.items()) / total
        assert figures["leaked"] == pytest.approx(mean)
        assert sum(figures["distances"]["nearest"]) == sum(
            near[0] >= 0 for rows in by_category.values() for _, near in rows
        )
        assert figures["index"]["vectors"] == len(vectors)
        assert figures["index"]["quantisation_error"] == 0
        assert sum(figures["index"]["list_sizes"]["lists"]) == figures["index"]["lists"] == 4
    assert len(card["examples"]) == 20
    assert card["expected_chunks"] == pytest.approx(card["totals"]["chunks"], rel=0.01), "all of it was sampled"
    assert all(stage["expected_seconds"] > 0 and stage["expected_peak_rss_bytes"] > 0 for stage in card["stages"])
    page = store.read(paths.card_uri(plan, "html")).decode()
    for door in ("<script", "<link", "src=", "@import", 'href="http', "url(http"):
        assert door not in page, "it needs nothing else"
    assert "<mark>" in page
    assert "chosen automatically" not in page, "some parameters without a value choose nothing"
    for name in ("max_chunks", "max_overlap", "nprobe"):
        assert f'<td>{name}</td><td class="text">{PARAMETERS[name].unset.replace("`", "")}</td>' in page
    train, val = page.split("<h3>val</h3>")
    assert ("leaked" in train, "leaked" in val.partition("<h2>")[0]) == (False, True), "training rows leak nothing"
    assert f"{card['totals']['chunks']:,}" in page
    assert card["gpu_hour_price"] is None
    assert "<th>GPU hours</th></tr>" in page

    store.at(uri).delete(paths.report_uri(plan, "describe"))
    run("describe", "--plan", uri, "--gpu-hour-price", "2.5")
    assert json.loads(store.read(paths.card_uri(plan, "json")))["gpu_hour_price"] == 2.5
    assert "at a price of 2.50 an hour: 0.00 in all" in store.read(paths.card_uri(plan, "html")).decode()
