"""Checks a recipe and writes sources.json: the recipe and all files that it lists.

This is the first stage of a run, so an error in a recipe is reported before any work, with the line to correct.
"""

import logging
import os
from argparse import ArgumentParser, Namespace

from retro_ops.corpus.recipes import file_list, shipped
from retro_ops.corpus.recipes.model import Recipe
from retro_ops.corpus.recipes.parser import parse_recipe
from retro_ops.errors import BadInputError
from retro_ops.execution.flags import add_place, add_unset, defaults_of
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import digests, source_list
from retro_ops.plan.parameters import Parameters, read_by, values_for
from retro_ops.plan.plan import Plan, check_name
from retro_ops.progress import say
from retro_ops.sizes import counted, in_words
from retro_ops.storage import read_ahead, store
from retro_ops.uris import parent
from retro_ops.versions import history

STAGE = "list-sources"
LOOKUPS = 8
"""Files looked up at a time; a local file is read in full for its fingerprint."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--recipe", help=f"recipe file, or a shipped recipe: {', '.join(shipped.names())}")
    parser.add_argument("--source-folder", help="where the recipe's relative paths start (default: its own folder)")
    add_place(parser)
    parser.add_argument("--output", help="sources.json to write; without it the recipe is only checked")
    parser.add_argument(
        "--refresh", action="store_true", help="take options that are not given from the published version"
    )
    add_unset(parser)


def run(arguments: Namespace, parameters: Parameters) -> None:
    check_name("dataset", arguments.dataset)
    root = arguments.root.rstrip("/")
    name, given_folder = arguments.recipe, arguments.source_folder
    if arguments.refresh and (previous := _published(root, arguments.dataset)):
        if name in (None, previous.recipe):
            given_folder = given_folder or previous.source_folder
        name = name or previous.recipe
        given = {key: getattr(arguments, key) for key in read_by(STAGE) if hasattr(arguments, key)}
        kept = values_for(STAGE, previous.parameters)
        unset = {key: value for key, value in defaults_of(arguments.unset, given).items() if key in kept}
        parameters = Parameters(**{**kept, **unset, **given})
    if not name:
        raise BadInputError("--recipe is missing", "name a recipe, or plan without one: `retro-ops plan --corpus …`")
    recipe, text = _read(name)
    given_folder = _absolute(given_folder) if given_folder else None
    folder = given_folder or parent(recipe.uri)
    digests.check_longest_line(parameters)
    line_bytes = digests.line_limit(parameters)
    settings = (parameters.on_bad_record, parameters.max_bad_share, line_bytes)
    listed_files, absent = file_list.find(recipe, folder)
    files = tuple(
        read_ahead.side_by_side(
            lambda file: file_list.source_file(recipe, folder, file, settings), listed_files, LOOKUPS
        )
    )
    listed = source_list.Sources(
        *(root, arguments.dataset, recipe.uri, text, folder, given_folder, files),
        *(*settings, parameters.memory_budget, absent),
    )
    for message in absent:
        say(f"{STAGE}: {message}", logging.WARNING, event="absent")
    size = sum(file.bytes for file in files)
    message = f"{STAGE}: {recipe.uri}: {counted(len(files), 'file')}, {in_words(size)}"
    if arguments.output:
        store.write(arguments.output, source_list.to_json(listed).encode())
        message += f": {arguments.output}"
    say(message, event="listed", files=len(files), bytes=size)


def _published(root: str, dataset: str) -> Plan | None:
    series = history.read(root, dataset)
    return read_plan(series.plan_uri()) if series.current else None


def _read(name: str) -> tuple[Recipe, str]:
    if shipped.is_shipped(name):
        text = shipped.text(name)
        if text is None:
            known = ", ".join(shipped.names())
            raise BadInputError(
                f"there is no shipped recipe {name!r}", f"use one of: {known}; or name a recipe file, NAME.yaml"
            )
        return parse_recipe(text, name), text
    uri = _absolute(name)
    try:
        text = store.read(uri).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"{uri} is not a text file: invalid UTF-8 at byte {error.start}", "name a recipe"
        ) from error
    return parse_recipe(text, uri), text


def _absolute(uri: str) -> str:
    """An absolute location, so that a refresh finds it from any working directory."""
    return uri.rstrip("/") if "://" in uri else os.path.abspath(uri)
