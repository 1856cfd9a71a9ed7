"""The request for approval: what a person sees before a version is published."""

import json
from pathlib import Path

from retro_airflow import approval
from stored_dataset import write_dataset

from retro_ops.plan import paths


def test_the_request_compares_the_new_version_with_the_current_one(tmp_path: Path) -> None:
    old, new = write_dataset(tmp_path, "news", versions=2)
    uri = paths.current_uri(str(tmp_path), "news")
    current = json.loads(Path(uri).read_text())["history"][0]
    quality = {"train": {"recall": 0.85, "fill_rate": 1.0, "near_duplicate": 0.1, "leaked": 0.0}}
    current["figures"] = {"stored_bytes": 1_000_000, "quality": quality}
    Path(uri).write_text(json.dumps(current))
    run = paths.plan_uri(str(tmp_path), "news", "run-2")
    names = [f"{number:04}" for number in range(25)]
    changes = {"base": 1, "nothing": False, "added": names, "changed": [], "removed": ["x"], "unchanged": 7}
    Path(paths.changes_uri(run)).write_text(json.dumps(changes))
    subject, body = approval.request(run)
    assert subject == "Publish news?"
    rows = body.splitlines()
    assert rows[0] == "| | version 1 | this version |"
    assert "| Recall, train | 85.0 % | 90.0 % |" in rows
    assert "| Size | 1.0 MB | 1.5 MB |" in rows
    assert "| Recall, val | - | 90.0 % |" in rows
    assert "Shards: 7 unchanged" in rows
    assert "- 25 added: `0000`, `0001`" in body
    assert "`0019` and 5 more" in body
    assert "/runs/run-2/card)" in rows[-1]
    assert old.dataset == new.dataset
