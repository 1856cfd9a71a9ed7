"""Prints random chunks of a dataset with their nearest neighbours as text."""

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import numpy as np

from retro_ops import uris
from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan import paths
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS
from retro_ops.plan.specs import IndexShard, dataset_spec_from_json, index_spec_from_json
from retro_ops.progress import show
from retro_ops.storage import store
from retro_ops.storage.npy import NpyReader, open_npy
from retro_ops.tokens.tokenizer import Tokenizer, planned
from retro_ops.versions import history


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser, required=False)
    parser.add_argument("--version", type=int, help="number of a version (default: the current one)")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="split to show (default: train)")
    parser.add_argument("--spec", help="dataset spec, instead of --root and --dataset")
    parser.add_argument("--rows", type=int, default=3, help="number of chunks to print (default 3)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    uri, tokenizer = (arguments.spec, None) if arguments.spec else _published(arguments, parameters)
    spec = dataset_spec_from_json(store.read(uri), uri)
    shards = index_spec_from_json(store.read(spec.index_spec), spec.index_spec)
    chunks = [open_npy(shard.chunks) for shard in shards]
    offsets = np.cumsum([0, *(len(array) for array in chunks)])
    tokenizer = tokenizer or Tokenizer.load(_tokenizer_name(shards, parameters), pad_id=0)
    rng = np.random.default_rng(parameters.seed)
    for _ in range(arguments.rows):
        shard = spec.shards[int(rng.integers(len(spec.shards)))]
        neighbours, own = open_npy(shard.neighbours), open_npy(shard.chunks)
        if not len(own):
            continue
        row = int(rng.integers(len(own)))
        show(f"\n{shard.chunks}, chunk {row}")
        show(_text(tokenizer, own, row, "  "))
        distances = paths.distances_uri(shard.neighbours)
        near = open_npy(distances).rows(row, row + 1)[0].tolist() if store.exists(distances) else None
        for rank, neighbour in enumerate(neighbours.rows(row, row + 1)[0].tolist()):
            if neighbour < 0:
                show(f"    {rank + 1}. none")
                continue
            where = int(np.searchsorted(offsets, neighbour, side="right")) - 1
            at = f", squared distance {near[rank]:.3f}" if near else ""
            show(f"    {rank + 1}. {shards[where].chunks}, chunk {neighbour - offsets[where]}{at}")
            show(_text(tokenizer, chunks[where], int(neighbour - offsets[where]), "       "))


def _published(arguments: Namespace, parameters: Parameters) -> tuple[str, Tokenizer | None]:
    """The dataset spec of a version, and its tokenizer unless ``parameters`` name one."""
    require_flags(arguments, "root", "dataset", remedy="name both, or a dataset spec with --spec")
    series = history.read(arguments.root.rstrip("/"), arguments.dataset)
    plan_uri = series.plan_uri(arguments.version)
    plan = read_plan(plan_uri)
    if arguments.split not in plan.splits():
        raise BadInputError(
            f"{arguments.dataset} has no split {arguments.split!r}", f"use {' or '.join(plan.splits())}"
        )
    given = parameters.tokenizer != Parameters().tokenizer
    tokenizer = None if given else planned(series.run_uri(arguments.version) or plan_uri, plan)
    return paths.dataset_spec_uri(plan, arguments.split), tokenizer


def _text(tokenizer: Tokenizer, chunks: NpyReader, row: int, indent: str) -> str:
    text = " ".join(tokenizer.decode(chunks.rows(row, row + 1))[0].split())
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=indent)


def _tokenizer_name(shards: Sequence[IndexShard], parameters: Parameters) -> str:
    """The tokenizer given on the command line, else the one in the reports of the chunks, else the default."""
    if parameters.tokenizer != Parameters().tokenizer:
        return parameters.tokenizer
    for shard in shards:
        folder = shard.chunks.rpartition("/")[0]
        for uri in (uris.beside(shard.chunks, paths.REPORT), uris.join(folder, paths.REPORT)):
            done = report.read(uri)
            if done and "tokenizer" in done["details"]:
                return str(done["details"]["tokenizer"])
    if not shards:
        raise BadInputError("the index spec has no shards", "name a dataset spec whose index spec lists shards")
    return parameters.tokenizer
