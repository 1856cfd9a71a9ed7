"""Splits a source file of a recipe into parts, one for each shard that it has documents for.

The file is streamed and decompressed once. If more shards would be open at a time than the memory budget allows, it is
read once for each group of them.
"""

import contextlib
import logging
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import replace
from functools import partial

from retro_ops import memory
from retro_ops.corpus import json_lines
from retro_ops.corpus.recipes import file_list
from retro_ops.corpus.recipes.model import Recipe, Rule
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.corpus.routing import ByPath
from retro_ops.corpus.splitting import OTHERS, REASONS, WRITER_BYTES, BadLines, Fan, ShardPart, route
from retro_ops.execution import report, shard_groups
from retro_ops.plan import source_list
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import Source
from retro_ops.plan.source_list import SourceFile, Sources
from retro_ops.progress import say
from retro_ops.sizes import parse_bytes
from retro_ops.storage import store

STAGE = "split-corpus"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--sources", required=True, help="sources.json of `list-sources`")
    parser.add_argument(
        "--file", required=True, type=split_names, metavar="A,B", help="source file in sources.json, or several"
    )


def run(arguments: Namespace, parameters: Parameters) -> None:
    listed = source_list.from_json(store.read(arguments.sources), arguments.sources)
    recipe = parse_recipe(listed.text, listed.recipe)
    budget = getattr(arguments, "memory_budget", listed.memory_budget)
    most_open = max(1, memory.open_parts(parse_bytes(budget)) // WRITER_BYTES)
    for name in arguments.file:
        listed.file(name)
    shard_groups.one_by_one(STAGE, "file", arguments.file, partial(_run, listed, recipe, most_open))


def _run(listed: Sources, recipe: Recipe, most_open: int, name: str) -> None:
    file = listed.file(name)
    settings = {"recipe": listed.recipe, "source_folder": listed.folder, "file": name}
    _forget_if_damaged(listed, file)
    work = partial(_split, listed, file, recipe.sources[file.rule], most_open)
    report.run_once(STAGE, listed.report_uri(file), file.digest, settings, [file.uri], work)


def _forget_if_damaged(listed: Sources, file: SourceFile) -> None:
    """Delete the report if a part does not match its fingerprint there.

    Otherwise every later plan would reuse the damaged part.
    """
    made = report.read(listed.report_uri(file))
    for part in made["details"]["parts"] if made else ():
        source = listed.part(file, part)
        if changed := json_lines.changed_source([source]):
            say(f"{STAGE}: {changed} since it was written, so {file.uri} is split again", logging.WARNING)
            store.at(source.uri).delete(listed.report_uri(file))
            return


def _split(listed: Sources, file: SourceFile, rule: Rule, most_open: int) -> report.Outcome:
    as_listed = [Source(file.uri, file.bytes, file.fingerprint)]
    json_lines.check_unchanged(as_listed, by="list_sources")
    if isinstance(rule.category, ByPath):
        rule = replace(rule, category=file_list.resolved(rule.category, listed.folder))
    folder = listed.parts_folder(file)
    places = [(split, category) for split in rule.outputs for category in rule.categories()]
    parts: list[ShardPart] = []
    left_out: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        bad = BadLines(stack, folder, listed)
        for start in range(0, len(places), most_open):
            fan = Fan(file, rule, folder, places[start : start + most_open])
            stack.callback(fan.abort)
            # Bad lines and unrouted documents are the same in every pass, so only the first one counts them.
            for reason in route(file, rule, listed, fan, bad if start == 0 else None):
                left_out[reason if reason in left_out or len(left_out) < REASONS else OTHERS] += 1
            parts += fan.close()
        bad.check_share()
        written = bad.close()
    bad.say(STAGE)
    json_lines.check_unchanged(as_listed, by="list_sources")
    parts.sort(key=lambda part: part.shard)
    return report.Outcome(
        counts={
            "documents": sum(part.documents for part in parts),
            "parts": len(parts),
            "left_out": left_out.total(),
            "bad_records": bad.count,
        },
        outputs=[*(part.written for part in parts), *written],
        details={
            "parts": [part.about() for part in parts],
            "left_out": dict(left_out.most_common()),
            "passes": -(-len(places) // most_open),
            **({"first_bad_record": str(bad.first)} if bad.first else {}),
        },
    )
