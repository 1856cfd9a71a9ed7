"""``retro-ops <stage>``: the entry point of every container and of whoever works by hand.

With ``--plan`` (and ``--shard``) a stage finds its inputs and outputs through the plan; without it,
the flags of the original scripts name them. Every path is local or ``s3://``.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType, ModuleType
from typing import Any

import retro_ops
from retro_ops.errors import EXIT_OK, BadInputError, RetroError
from retro_ops.execution import shard_groups
from retro_ops.execution.plan_files import check_code, read_plan
from retro_ops.plan import digests
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import configure_logging, logger, say

STAGES = (
    "build",
    "list-sources",
    "split-corpus",
    "plan",
    "sign-documents",
    "find-duplicates",
    "tokenize-and-chunk",
    "embed-chunks",
    "check-drift",
    "train-faiss-index",
    "build-faiss-index",
    "merge-indexes",
    "tune-search",
    "retrieve-neighbours",
    "write-specs",
    "validate",
    "describe",
    "publish",
    "list",
    "diff",
    "rollback",
    "prune",
    "export",
    "status",
    "show",
)
STAGES_WITHOUT_PLAN = (
    *("build", "list-sources", "split-corpus", "plan"),
    *("list", "diff", "rollback", "prune", "export", "status", "show"),
)

HOW_NOT_WHAT = frozenset(
    {"batch_size", "device", "shard_index", "memory_budget", "search_memory"}
    | {"min_recall", "min_full_rows", "max_duplicates", "max_leaked", "max_imbalance", "max_drift"}
)
"""Parameters of how a stage runs or whether it refuses, not of what it writes: they may differ from the plan's."""


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


FLAGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"help": "tokenizer of the chunks: hub name or local folder"},
    "pad_id": {"type": _natural, "help": "id to pad with (default: the tokenizer's)"},
    "chunk_size": {"type": _positive, "help": "tokens a chunk"},
    "max_chunks": {"type": _positive, "help": "stop before the document that passes this many chunks"},
    "token_dtype": {"choices": ("auto", "uint16", "uint32"), "help": "auto: uint16 when the vocabulary fits"},
    "on_bad_record": {"choices": ("quarantine", "fail"), "help": "what a bad record does"},
    "max_bad_share": {"type": _share, "help": "share of bad records above which the stage fails"},
    "model": {"help": "sentence-transformer: hub name or local folder"},
    "embed_input": {
        "choices": ("text", "ids"),
        "help": "text: chunks are decoded and tokenised again; ids: they are fed as they are, if the tokenizer is the "
        "model's own, which is faster and gives slightly other vectors",
    },
    "batch_size": {"type": _positive, "help": "chunks embedded at a time (default: what is fastest on the device)"},
    "index_type": {"help": "faiss factory string, or auto: by the number of vectors and their dimension"},
    "index_memory": {"help": "most memory that an index of type auto may take, such as 8GiB (default: any)"},
    "index_too_small": {
        "choices": ("fail", "downgrade"),
        "help": "what a corpus does that is too small to train the index type; downgrade: auto instead, and say so",
    },
    "max_training_vectors": {"type": _positive, "help": "training sample (default: 256 a list)"},
    "seed": {"type": _natural, "help": "seed of everything random"},
    "num_neighbours": {"type": _positive, "help": "neighbours a chunk"},
    "profile": {"choices": ("default", "seed"), "help": "seed: exactly the original's search"},
    "nprobe": {"type": _positive, "help": "inverted lists probed (default: what reaches the recall; seed profile: 1)"},
    "retrieval_margin": {
        "type": _natural,
        "help": "candidates beyond the neighbours (default: what reaches the recall; seed profile: 4)",
    },
    "target_recall": {"type": _share, "help": "share of the true nearest neighbours to find; 1: exact search"},
    "recall_sample": {"type": _positive, "help": "queries that the recall is measured on"},
    "max_overlap": {"type": _share, "help": "drop neighbours that share more of their tokens (default: keep them)"},
    "max_shared_run": {
        "type": _natural,
        "help": "drop neighbours of validation chunks with a longer run of tokens in common (default: keep them)",
    },
    "max_shared_ngrams": {
        "type": _share,
        "help": "drop neighbours of validation chunks whose 13-grams are more alike (default: keep them)",
    },
    "min_recall": {"type": _share, "help": "recall below which publish refuses"},
    "min_full_rows": {"type": _share, "help": "share of rows with all neighbours below which publish refuses"},
    "max_duplicates": {"type": _share, "help": "share of near-duplicate neighbours above which publish refuses"},
    "max_leaked": {"type": _share, "help": "share of validation chunks with leaked text above which publish refuses"},
    "max_imbalance": {"type": float, "help": "imbalance factor of the index above which publish refuses"},
    "max_drift": {
        "type": float,
        "help": "share by which quantisation error or imbalance may rise before a refresh trains the index again",
    },
    "device": {"choices": ("auto", "cpu", "cuda"), "help": "cuda: an error when there is no GPU"},
    "shard_index": {"action": "store_true", "help": "spread the index over all GPUs"},
    "duplicates": {
        "choices": ("keep", "report", "drop"),
        "help": "documents that repeat others: kept, counted, or counted and left out",
    },
    "duplicate_threshold": {
        "type": _share,
        "help": "Jaccard similarity of their word 5-grams from which on two documents are duplicates",
    },
    "search_memory": {
        "help": "most memory that an index may take where it is merged, searched or measured, such as 16GiB; a larger "
        "one is read part by part (default: three quarters of what the machine has, less the memory budget)",
    },
    "memory_budget": {"help": "memory beside model and index, such as 2GiB"},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retro-ops", description=retro_ops.__doc__)
    parser.add_argument("--version", action="version", version=f"retro-ops {retro_ops.__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="stage")
    for name in STAGES:
        module = _module(name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(command)
        if name not in STAGES_WITHOUT_PLAN:
            command.add_argument("--plan", help="plan of the run: inputs and outputs follow from it")
            command.add_argument(
                "--shard",
                type=shard_groups.names,
                metavar="A,B",
                help="shard of the plan, or several, one after the other",
            )
        for parameter in module.PARAMETERS:
            _add_flag(command, parameter)
        if "device" in module.PARAMETERS:
            command.add_argument(
                "--use-gpus", dest="device", action="store_const", const="cuda", default=argparse.SUPPRESS,
                help="the original's flag for --device cuda",
            )  # fmt: skip
        command.add_argument("--verbose", action="store_true", help="accepted for the original's sake")
    return parser


def _add_flag(command: argparse.ArgumentParser, parameter: str) -> None:
    default = getattr(Parameters(), parameter)
    options = dict(FLAGS[parameter])
    if default not in (None, False):
        options["help"] += f" (default {default})"
    # Absent unless given, so that a flag can be told from a default.
    command.add_argument(f"--{parameter.replace('_', '-')}", default=argparse.SUPPRESS, **options)


def _module(stage: str) -> ModuleType:
    name = "build.command" if stage == "build" else f"stages.{stage.replace('-', '_')}"
    return importlib.import_module(f"retro_ops.{name}")


def _parameters(arguments: argparse.Namespace) -> Parameters:
    given = {name: value for name, value in vars(arguments).items() if name in FLAGS}
    plan_uri = getattr(arguments, "plan", None)
    if plan_uri is None:
        return replace(Parameters(), **given)
    fixed = sorted(set(given) - HOW_NOT_WHAT)
    if fixed:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        raise BadInputError(f"{flags}: fixed by the plan", "make another plan, or leave --plan out and name the files")
    plan = read_plan(plan_uri)
    if arguments.stage in digests.CODE_VERSIONS:
        check_code(plan, plan_uri)
    return replace(plan.parameters, **given)


def _stop(number: int, frame: FrameType | None) -> None:
    """End in order, so that unfinished uploads are aborted. Process 1 of a container has no other way to end."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    # Quiet where it is safe: tokenizers would warn when a worker forks after use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        _module(arguments.stage).run(arguments, _parameters(arguments))
    except RetroError as error:
        say(str(error), logging.ERROR, event="failed", exit_code=error.exit_code)
        return error.exit_code
    except Exception:
        logger.error("%s failed unexpectedly:\n%s", arguments.stage, traceback.format_exc())
        return 1
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
