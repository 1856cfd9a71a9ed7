"""Honours the command lines of the stages and writes their reports, but does none of their work."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retro_ops import layout, specs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--plan")
    parser.add_argument("--shard")
    for name in ("root", "dataset", "corpus", "validation-corpus", "output"):
        parser.add_argument(f"--{name}")
    for field in dataclasses.fields(specs.Parameters):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    arguments = parser.parse_args()
    if arguments.stage == "plan":
        write(arguments.output, specs.plan_to_json(plan(arguments)))
    else:
        the_plan = specs.plan_from_json(Path(arguments.plan).read_text(), arguments.plan)
        if arguments.stage == "publish":
            current = {"version": 1, "path": "p", "published_at": "t", "counts": {"chunks": 4}}
            write(layout.current_uri(the_plan.root, the_plan.dataset), json.dumps(current))
        else:
            marker = layout.report_uri(the_plan, arguments.stage, arguments.shard)
            write(marker, json.dumps({"stage": arguments.stage, "shard": arguments.shard, "counts": {"chunks": 1}}))
    print(json.dumps({"level": "info", "message": f"{arguments.stage} is done"}), file=sys.stderr)


def plan(arguments: argparse.Namespace) -> specs.Plan:
    folders: list[tuple[specs.Split, str | None]] = [
        ("train", arguments.corpus),
        ("val", arguments.validation_corpus),
    ]
    shards = [
        specs.Shard(path.stem, split, (specs.Source(str(path), path.stat().st_size, path.read_text()),))
        for split, folder in folders
        if folder
        for path in sorted(Path(folder).glob("*.jsonl"))
    ]
    return specs.Plan(
        dataset=arguments.dataset,
        root=arguments.root,
        parameters=specs.Parameters(index_type=arguments.index_type),
        identity=specs.Identity("t", 100, 0, "m", 8),
        shards=tuple(shards),
    )


def write(uri: str, text: str) -> None:
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_text(text)


main()
