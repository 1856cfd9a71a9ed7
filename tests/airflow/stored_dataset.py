"""A dataset in a folder as the stages leave it, written in milliseconds and without their libraries."""

import dataclasses
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro_ops.plan import paths
from retro_ops.plan.card import figures as card_figures
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard, Source, plan_to_json
from retro_ops.plan.stage_graph import SHARD_STAGES

WORDS = ("[PAD]", "alpha", "beta", "gamma", "delta", "omega", "##s", "<script>alert(1)</script>", "\u202eevil", "\x07")
QUALITY = {"recall": 0.9, "fill_rate": 1.0, "near_duplicate": 0.125, "leaked": 0.25, "same_document": 0.0}
CODES = {"H": "<u2", "i": "<i4", "q": "<i8", "Q": "<u8", "f": "<f4"}
CHUNKS, DOCUMENTS, NEIGHBOURS = 6, 3, 2
"""Of each shard; a document has two chunks."""


def write_npy(uri: str, code: str, rows: Sequence[Sequence[float]] | Sequence[float]) -> None:
    wide = [row if isinstance(row, Sequence) else (row,) for row in rows]
    shape = (len(wide), len(wide[0])) if rows and isinstance(rows[0], Sequence) else (len(wide),)
    header = repr({"descr": CODES[code], "fortran_order": False, "shape": shape}).encode()
    header += b" " * (117 - len(header)) + b"\n"
    data = b"".join(struct.pack(f"<{len(row)}{code}", *row) for row in wide)
    _write(uri, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)


def make_plan(root: Path, name: str, shards: int, content: str) -> Plan:
    """A plan whose last shard is for validation; ``content`` decides the digests of all shards but the first."""

    def shard(number: int) -> Shard:
        is_val = number == shards - 1
        source = Source(f"/corpus/{number}.jsonl", 10, "same" if number == 0 else content)
        return Shard("val_0" if is_val else f"{number:04}_news", "val" if is_val else "train", (source,))

    identity = Identity("t", len(WORDS), 0, "m", 8)
    return Plan(name, str(root), Parameters(), identity, tuple(shard(number) for number in range(shards)))


def write_dataset(root: Path, name: str, shards: int = 3, versions: int = 1, *, whole: bool = True) -> list[Plan]:
    """Publish ``versions`` versions. Only the last has the files of its shards; without ``whole`` only reports."""
    plans = [make_plan(root, name, shards, f"content {number}") for number in range(1, versions + 1)]
    entries = [_version(plan, number) for number, plan in enumerate(plans, 1)]
    for shard in plans[-1].shards:
        for stage in SHARD_STAGES:
            _write(paths.report_uri(plans[-1], stage, shard.name), b"{}")
        if whole:
            _shard(plans[-1], shard)
    _write(paths.current_uri(str(root), name), {**entries[-1], "last": versions, "history": entries[:-1]})
    return plans


def _version(plan: Plan, number: int) -> dict[str, Any]:
    folder = paths.dataset_folder(plan.root, plan.dataset)
    run = paths.plan_uri(plan.root, plan.dataset, f"run-{number}")
    _write(run, plan_to_json(plan).encode())
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    special = [{"id": 0, "content": "[PAD]", "special": True}]
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": special, "decoder": {"type": "WordPiece"}}
    _write(paths.tokenizer_uri(run), {"tokenizer": json.dumps(tokenizer), "cleans_up": False})
    of_shards = [
        {"name": shard.name, "counts": {"documents": DOCUMENTS, "chunks": CHUNKS, "bad_records": 0}}
        for shard in plan.shards
    ]
    _write(paths.manifest_uri(plan), {"shards": of_shards})
    _write(paths.version_plan_uri(plan), plan_to_json(plan).encode())
    _write(paths.card_uri(plan, "json"), card(plan))
    _write(paths.card_uri(plan, "html"), b"<p>the card</p><script>alert(1)</script>")
    for stage in ("write-specs", "describe", "validate"):
        _write(paths.report_uri(plan, stage), b"{}")
    # Releases before the pages wrote no figures.
    figures = {"figures": card_figures(card(plan))} if number > 1 else {}
    count = len(plan.shards)
    counts = {"shards": count, "documents": DOCUMENTS * count, "chunks": CHUNKS * count}
    return {
        "version": number,
        "format": 1,
        "path": paths.manifest_uri(plan).removeprefix(f"{folder}/").rpartition("/")[0],
        "published_at": f"2026-11-{number % 28 + 1:02}T03:00:00+00:00",
        "plan": paths.version_plan_uri(plan).removeprefix(f"{folder}/"),
        "run": run.removeprefix(f"{folder}/"),
        "counts": counts,
        **figures,
    }


def card(plan: Plan) -> dict[str, Any]:
    quality = {**QUALITY, "rows": CHUNKS, "sampled_rows": CHUNKS, "all_rows_full": 1.0}
    worst = {"lowest_recall": [{"shard": "0001_news", "row": 2, "value": 0.25}], "identical": [], "leaked": []}
    return {
        "totals": {"documents": 9, "chunks": 18, "source_bytes": 30, "stored_bytes": 1_500_000},
        "quality": {
            "train": {**quality, "worst": worst, "categories": {"news": quality}},
            "val": {**quality, "categories": {}},
        },
        "split_corpus": {"files": 2, "bad_records": 7, "left_out": 0, "first_bad_record": "a.jsonl, line 4: bad JSON"},
        "index_type": {"type": "Flat", "why": "small"},
        "contents": [],
        "stages": [],
        "provenance": {"sources": [dataclasses.asdict(source) for shard in plan.shards for source in shard.sources]},
    }


def _shard(plan: Plan, shard: Shard) -> None:
    """Chunk i of a shard is (token i + 1) three times; its neighbours are chunks 0 and i of the first shard."""
    files = paths.chunks_files(plan, shard.name)
    write_npy(files["chunks"], "H", [[i + 1 if i < 5 else 7, i + 1, 8, 0] for i in range(CHUNKS)])
    write_npy(files["chunk2seq"], "i", [i // 2 for i in range(CHUNKS)])
    write_npy(files["seq2chunk"], "q", [0, 2, 4])
    write_npy(paths.document_ids_uri(files["chunks"]), "Q", [2**63 + i // 2 for i in range(CHUNKS)])
    neighbours = paths.neighbours_uri(plan, shard.name)
    write_npy(neighbours, "i", [[CHUNKS + i, -1 if i == 0 else 0] for i in range(CHUNKS)])
    write_npy(paths.distances_uri(neighbours), "f", [[0.5, 0.75] for _ in range(CHUNKS)])


def _write(uri: str, content: bytes | dict[str, Any]) -> None:
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
