"""Honours the command lines of the stages and writes their reports, but does none of their work."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import stored_dataset

from retro_ops.plan import digests, paths, source_list
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Identity, Plan, Shard, Source, Split, plan_from_json, plan_to_json

REAL = ("list-sources", "split-corpus")
"""They take a second, so they are not stubs."""

UNTIL_GATE = ("tokenize-and-chunk", "embed-chunks")


def main() -> None:
    if sys.argv[1] in REAL:
        command = Path(__file__).resolve().parents[2] / ".venv/stages/bin/retro-ops"
        sys.exit(subprocess.call([command, *sys.argv[1:]]))
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--plan")
    parser.add_argument("--shard")
    parser.add_argument("--cell")
    parser.add_argument("--grid")
    names = ("root", "dataset", "corpus", "validation-corpus", "sources", "output", "as-of", "run", "shards")
    for name in (*names, "indexed", "queried"):
        parser.add_argument(f"--{name}")
    for name in ("refresh", "repair", "quick", "changed-only"):
        parser.add_argument(f"--{name}", action="store_true")
    for field in dataclasses.fields(Parameters):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    arguments = parser.parse_args()
    if arguments.stage == "plan":
        planned = plan(arguments)
        write(arguments.output, plan_to_json(planned))
        current = Path(paths.current_uri(planned.root, planned.dataset))
        nothing = current.exists() and json.loads(current.read_text())["path"] == version_of(planned)
        changes = {"nothing": nothing, "base": None, "added": ["x"], "changed": [], "removed": [], "unchanged": 0}
        write(paths.changes_uri(arguments.output), json.dumps(changes))
    else:
        the_plan = plan_from_json(Path(arguments.plan).read_text(), arguments.plan)
        if arguments.stage == "publish":
            path = version_of(the_plan)
            current = {"version": 1, "path": path, "published_at": "t", "counts": {"chunks": 4}, "plan": arguments.plan}
            current["history"] = []
            write(paths.current_uri(the_plan.root, the_plan.dataset), json.dumps(current))
        elif arguments.stage == "find-duplicates":
            changed = dataclasses.replace(the_plan, deduplicated=True)
            write(paths.next_plan_uri(arguments.plan, "deduplicated"), plan_to_json(changed))
        elif arguments.stage == "check-drift":
            write(paths.next_plan_uri(arguments.plan, "decided"), plan_to_json(the_plan))
        else:
            if arguments.stage == "describe":
                write(paths.card_uri(the_plan, "json"), json.dumps(stored_dataset.card(the_plan)))
            done = [report(the_plan, arguments.stage, shard) for shard in (arguments.shard or "").split(",")]
            if not all(done):
                sys.exit(65)
    print(json.dumps({"level": "info", "message": f"{arguments.stage} is done"}), file=sys.stderr)


def report(of: Plan, stage: str, shard: str) -> bool:
    """Whether it could be done: not what the door keeps from being tokenised, also as one of a group."""
    if stage in UNTIL_GATE and Path(os.environ["RETRO_TEST_DOOR"], f"fail.tokenize-and-chunk.{shard}").exists():
        return False
    write(paths.report_uri(of, stage, shard or None), json.dumps({"stage": stage, "counts": {"chunks": 1}}))
    return True


def plan(arguments: argparse.Namespace) -> Plan:
    if arguments.sources:
        return plan_of(
            arguments, of_recipe(arguments.sources), json.loads(Path(arguments.sources).read_text())["recipe"]
        )
    if not arguments.corpus:  # That of the current version.
        current = json.loads(Path(paths.current_uri(arguments.root, arguments.dataset)).read_text())
        previous = plan_from_json(Path(current["plan"]).read_text(), current["plan"])
        if previous.recipe:
            return previous
        places = {(shard.split, str(Path(source.uri).parent)) for shard in previous.shards for source in shard.sources}
        return dataclasses.replace(previous, shards=shards_of(sorted(places)))
    corpora: list[tuple[Split, str | None]] = [("train", arguments.corpus), ("val", arguments.validation_corpus)]
    return plan_of(arguments, shards_of([(split, folder) for split, folder in corpora if folder]))


def shards_of(folders: Iterable[tuple[Split, str]]) -> tuple[Shard, ...]:
    return tuple(
        Shard(path.stem, split, (Source(str(path), path.stat().st_size, path.read_text()),))
        for split, folder in folders
        for path in sorted(Path(folder).glob("*.jsonl"))
    )


def of_recipe(uri: str) -> tuple[Shard, ...]:
    listed = source_list.from_json(Path(uri).read_text(), uri)
    return tuple(
        Shard(
            part["shard"],
            part["split"],
            (Source(paths.part_uri(listed.parts_folder(file), part["shard"]), part["bytes"], part["fingerprint"]),),
        )
        for file in listed.files
        for part in json.loads(Path(listed.report_uri(file)).read_text())["details"]["parts"]
    )


def plan_of(arguments: argparse.Namespace, shards: tuple[Shard, ...], recipe: str | None = None) -> Plan:
    return Plan(
        dataset=arguments.dataset,
        root=arguments.root,
        parameters=Parameters(index_type=arguments.index_type or "auto", duplicates=arguments.duplicates or "keep"),
        identity=Identity("t", 100, 0, "m", 8),
        shards=shards,
        recipe=recipe,
    )


def version_of(of: Plan) -> str:
    return f"versions/{digests.version_digest(of)}"


def write(uri: str, text: str) -> None:
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_text(text)


main()
