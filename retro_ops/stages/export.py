"""Copies a published version to a folder, in the format of a trainer or as Parquet tables."""

from argparse import ArgumentParser, Namespace

from retro_ops.execution.flags import add_place
from retro_ops.export import lucidrains, original, parquet
from retro_ops.export.record import ExportRecord
from retro_ops.export.version import open_version
from retro_ops.plan.parameters import Parameters
from retro_ops.progress import say

STAGE = "export"
FORMATS = ("original", "lucidrains", "parquet")


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--version", type=int, help="number of a version (default: the current one)")
    parser.add_argument("--to", required=True, help="folder to copy to; files that it already has are not copied again")
    parser.add_argument(
        "--format", choices=FORMATS, default=FORMATS[0],
        help="files of the original scripts, memory maps of lucidrains/RETRO-pytorch, or Parquet tables",
    )  # fmt: skip
    parser.add_argument(
        "--only", choices=("trainer",), help="chunks, neighbours and documents, without index and embeddings"
    )
    parser.add_argument("--shards", metavar="A,B*", help="name patterns of the shards to export (default: all)")
    parser.add_argument(
        "--sequence-length", type=int, default=lucidrains.SEQUENCE_LENGTH,
        help=f"tokens of a training sequence of RETRO-pytorch (default {lucidrains.SEQUENCE_LENGTH})",
    )  # fmt: skip


def run(arguments: Namespace, parameters: Parameters) -> None:
    to = arguments.to.rstrip("/")
    version = open_version(arguments.root.rstrip("/"), arguments.dataset, arguments.version)
    chosen = version.chosen(arguments.shards)
    record = ExportRecord(to, arguments.format, arguments.dataset, version.number)
    try:
        if arguments.format == "parquet":
            new = parquet.export(version, record, chosen)
        elif arguments.format == "lucidrains":
            new = lucidrains.export(version, record, chosen, arguments.sequence_length)
        else:
            new = original.export(version, record, chosen, only_trainer=arguments.only == "trainer")
    finally:
        record.save()  # Also what was written before an error: the next try continues after it.
    say(f"{STAGE}: version {version.number} of {arguments.dataset}: {len(record):,} files, {new:,} of them new: {to}")
