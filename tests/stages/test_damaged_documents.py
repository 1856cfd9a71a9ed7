"""Every JSON document of a dataset, damaged in every way: exit 65 with its name, and never a traceback."""

from pathlib import Path

import pytest
from nightly import Nights

from retro_ops.cli import main
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths

CONTENTS = {
    "null": b"null",
    "nested": b"[" * 100_000,
    "a long number": b'{"version": ' + b"7" * 5000 + b"}",
    "UTF-16": '{"version": 1}'.encode("utf-16"),
    "NaN": b'{"quality": NaN}',
    "wrong types": b'{"version": 1, "history": "x", "outputs": [1], "shards": {}, "quality": [], "digests": 1}',
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("content", ["cut off", *CONTENTS])
def test_a_damaged_document_is_named_and_never_a_traceback(
    content: str, built: Nights, capfd: pytest.CaptureFixture[str]
) -> None:
    place = ("--root", built.root, "--dataset", "d")
    uri = built.series().plan_uri()
    plan = read_plan(uri)
    run = ("--plan", built.runs[0].plan_uri)
    spec = paths.dataset_spec_uri(plan, "train")
    repair = ("plan", *place, "--repair", "--quick", "--output", f"{built.root}/x.json")
    refresh = ("list-sources", *place, "--refresh")
    commands: dict[str, list[tuple[str, ...]]] = {
        paths.current_uri(built.root, "d"): [
            ("list", *place),
            ("status", *place),
            ("prune", *place, "--keep", "1"),
            repair,
            refresh,
        ],
        uri: [
            ("status", *place),
            ("prune", *place, "--keep", "1"),
            ("diff", *place, "--from", "1", "--to", "1"),
            repair,
        ],
        built.runs[0].plan_uri: [("status", *run), ("validate", *run), ("publish", *run), ("embed-chunks", *run)],
        paths.manifest_uri(plan): [("export", *place, "--to", f"{built.root}/out"), ("prune", *place, "--keep", "1")],
        paths.card_uri(plan, "json"): [("publish", *run), ("diff", *place, "--from", "1", "--to", "1")],
        paths.condemned_uri(built.root, "d"): [("publish", *run)],
        paths.estimate_uri(built.runs[0].plan_uri): [("status", *run), ("describe", *run)],
        paths.report_uri(plan, "write-specs"): [("write-specs", *run)],
        spec: [("show", "--spec", spec), ("export", *place, "--to", f"{built.root}/out")],
        paths.index_spec_uri(plan, "train"): [("show", "--spec", spec), ("prune", *place, "--keep", "1")],
    }
    for damaged, calls in commands.items():
        path = Path(damaged)
        whole = path.read_bytes() if path.exists() else b'{"digests": []}\n'
        path.write_bytes(CONTENTS.get(content, whole[: len(whole) // 2]))
        for call in calls:
            capfd.readouterr()
            code = main([*call])
            said = capfd.readouterr().err
            assert code == 65, (call, said[-2000:])
            assert "Traceback" not in said
            assert path.name in said, (call, said)
            assert "What to do" in said
        if path.name == "condemned.json":
            path.unlink()
        else:
            path.write_bytes(whole)
