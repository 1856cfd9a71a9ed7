"""Writes index specs, dataset specs and the manifest of a version. Without --plan it writes single spec files."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from retro_ops.errors import BadInputError, require_flags
from retro_ops.execution import report
from retro_ops.execution.plan_files import read_plan, write_plan
from retro_ops.plan import digests, paths, stage_graph
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.parameters import as_written as parameters_as_written
from retro_ops.plan.plan import Plan, Shard
from retro_ops.plan.plan import as_written as plan_as_written
from retro_ops.plan.specs import DatasetShard, DatasetSpec, IndexShard, dataset_spec_to_json, index_spec_to_json
from retro_ops.progress import say
from retro_ops.storage import read_ahead, store
from retro_ops.uris import join, parent, relative
from retro_ops.versions.split_files import split_files, split_reports

STAGE = "write-specs"
MANIFEST_FORMAT = 1


def add_arguments(parser: ArgumentParser) -> None:
    for name in ("chunks", "seq2chunk", "chunk2seq", "embeddings", "neighbours"):
        parser.add_argument(f"--{name}", nargs="+", default=[], help=f"{name} of each shard (.npy), in id order")
    parser.add_argument("--faiss-index", help="filled index for the dataset spec")
    parser.add_argument(
        "--index-spec", help="index spec to write (with --embeddings) or to refer to in the dataset spec"
    )
    parser.add_argument("--data-spec", help="dataset spec to write (with --neighbours and --faiss-index)")


def run(arguments: Namespace, parameters: Parameters) -> None:
    if not arguments.plan:
        _write_by_hand(arguments)
        return
    plan = read_plan(arguments.plan)
    uri = paths.report_uri(plan, STAGE)
    inputs = [paths.neighbours_uri(plan, shard.name) for shard in plan.shards if shard.queried]
    report.run_once(STAGE, uri, digests.version_digest(plan), {}, inputs, lambda: _work(plan))


def _work(plan: Plan) -> report.Outcome:
    outputs = []
    for split in plan.splits():
        uri = paths.index_spec_uri(plan, split)
        outputs.append(store.write(uri, index_spec_to_json(paths.index_shards(plan, split), uri).encode()))
        uri = paths.dataset_spec_uri(plan, split)
        outputs.append(store.write(uri, dataset_spec_to_json(paths.dataset_spec(plan, split), uri).encode()))
    counts = read_ahead.side_by_side(partial(_counts, plan), plan.shards)
    trained = report.require(paths.report_uri(plan, "train-faiss-index"), "the training of the index")
    of_recipe = split_files(split_reports(plan))
    manifest = {
        "format": MANIFEST_FORMAT,
        "dataset": plan.dataset,
        "parameters": parameters_as_written(plan.parameters),
        "identity": asdict(plan.identity),
        "code_versions": dict(digests.CODE_VERSIONS),
        "trained_index": relative(paths.trained_index_uri(plan), parent(paths.manifest_uri(plan))),
        "index_type": trained["details"]["index_type"],
        "tuning": digests.tuning_digest(plan),
        "shards": [
            {**_entry(plan, shard), **_embeddings(plan, shard), "counts": shard_counts}
            for shard, shard_counts in zip(plan.shards, counts, strict=True)
        ],
        "skipped": plan.skipped,
        **({"split_corpus": of_recipe} if of_recipe else {}),
        **({"benchmark_files": list(map(asdict, plan.benchmark_files))} if plan.benchmark_files else {}),
    }
    outputs.append(store.write(paths.manifest_uri(plan), (json.dumps(manifest, indent=1) + "\n").encode()))
    outputs.append(write_plan(plan, paths.version_plan_uri(plan)))
    totals = {key: sum(c.get(key, 0) for c in counts) for key in ("documents", "chunks", "bad_records", "full_rows")}
    if of_recipe:
        totals["bad_records"] += of_recipe["bad_records"]
    return report.Outcome(counts={"shards": len(plan.shards), **totals}, outputs=outputs)


def _counts(plan: Plan, shard: Shard) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stage in ("tokenize-and-chunk", "retrieve-neighbours"):
        if stage_graph.runs_on(stage, shard):
            done = report.require(paths.report_uri(plan, stage, shard.name), f"{stage} of shard {shard.name!r}")
            counts |= done["counts"]
    return counts


def _entry(plan: Plan, shard: Shard) -> dict[str, Any]:
    """Manifest entry of a shard. Files of the dataset are named relative to the manifest, so that a copy of the dataset
    or of the manifest does not name a folder that is not there."""
    entry, inside = plan_as_written(shard), join(paths.dataset_folder(plan.root, plan.dataset), "")
    for source in (*entry["sources"], *filter(None, map(entry.get, ("without", "contaminated")))):
        if source["uri"].startswith(inside):
            source["uri"] = relative(source["uri"], parent(paths.manifest_uri(plan)))
    return entry


def _embeddings(plan: Plan, shard: Shard) -> dict[str, str]:
    """Manifest entry with the embeddings of a shard that is in no index spec."""
    if shard.indexed:
        return {}
    return {"embeddings": relative(paths.embeddings_uri(plan, shard.name), parent(paths.manifest_uri(plan)))}


def _write_by_hand(arguments: Namespace) -> None:
    require_flags(arguments, "index_spec", "chunks", remedy="give both, or --plan")
    base: list[Sequence[str]] = [arguments.chunks, arguments.seq2chunk, arguments.chunk2seq]
    if arguments.embeddings:
        index_shards = [IndexShard(*files) for files in _rows([*base, arguments.embeddings])]
        store.write(arguments.index_spec, index_spec_to_json(index_shards, arguments.index_spec).encode())
        say(f"{STAGE}: {arguments.index_spec}")
    if arguments.data_spec:
        if not (arguments.neighbours and arguments.faiss_index):
            raise BadInputError("--data-spec needs --neighbours and --faiss-index", "give both")
        shards = tuple(DatasetShard(*files) for files in _rows([*base, arguments.neighbours]))
        spec = DatasetSpec(shards, arguments.faiss_index, arguments.index_spec)
        store.write(arguments.data_spec, dataset_spec_to_json(spec, arguments.data_spec).encode())
        say(f"{STAGE}: {arguments.data_spec}")


def _rows(columns: Sequence[Sequence[str]]) -> list[tuple[Any, ...]]:
    if len({len(column) for column in columns}) != 1:
        raise BadInputError(
            f"unequal numbers of paths: {', '.join(str(len(column)) for column in columns)}",
            "name each kind of file once for every shard, in the same order",
        )
    return list(zip(*columns, strict=True))
