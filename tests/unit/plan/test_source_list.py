"""The list of source files: names and places that lead elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retro_ops.errors import BadInputError
from retro_ops.plan import paths
from retro_ops.plan.source_list import SourceFile, Sources, from_json, to_json

FILE = SourceFile("a", "/c/a.jsonl", 1, "sha256:1", 0, "0123456789abcdef")
LISTED = Sources("/r", "d", "/recipe.yaml", "", "/", None, (FILE,), "quarantine", 0.5, 1, "2GiB")
URI = paths.sources_uri("/r", "d", "x")


def test_a_list_is_read_as_it_was_written() -> None:
    for uri in (URI, "/elsewhere/sources.json", "s3://b/sources.json"):
        assert from_json(to_json(LISTED), uri) == LISTED


@pytest.mark.parametrize(
    "change",
    [
        {"root": "/other"},
        {"root": "/r/d/../../other"},
        {"root": "s3://b"},
        {"dataset": "e"},
        {"dataset": "../d"},
        {"files": (replace(FILE, name="../x"),)},
        {"files": (replace(FILE, digest="../x"),)},
        {"files": (replace(FILE, name="x" * 300),)},
    ],
)
def test_what_would_be_written_elsewhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        from_json(to_json(replace(LISTED, **change)), URI)


def test_a_linked_root_is_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    listed = replace(LISTED, root=str(tmp_path / "link"))
    assert from_json(to_json(listed), paths.sources_uri(str(tmp_path / "real"), "d", "x")) == listed


@pytest.mark.parametrize("shard", ["../../x", "a/b", "", "x" * 300])
def test_a_part_stays_in_its_folder(shard: str) -> None:
    with pytest.raises(BadInputError, match="shard"):
        LISTED.part(FILE, {"shard": shard, "bytes": 1, "fingerprint": "x"})


@pytest.mark.parametrize("field", ["root", "files", "line_bytes", "format", "max_bad_share"])
def test_a_wrong_value_is_named_with_its_place(field: str) -> None:
    document = json.loads(to_json(LISTED))
    with pytest.raises(BadInputError, match=f"{URI}: {field}.* should be .*\\n.*list-sources"):
        from_json(json.dumps(document | {field: [1]}), URI)
