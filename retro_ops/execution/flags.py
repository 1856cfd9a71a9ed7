"""Flags that several commands share."""

from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from typing import Any

from retro_ops.errors import BadInputError
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import PARAMETERS


def add_place(parser: ArgumentParser, *, required: bool = True, dataset: str = "name of the dataset") -> None:
    """``--root`` and ``--dataset``; ``dataset``: help of the latter."""
    parser.add_argument("--root", required=required, help="where all datasets are: a folder or s3://bucket/prefix")
    parser.add_argument("--dataset", required=required, help=dataset)


def add_unset(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--unset",
        type=split_names,
        default=[],
        metavar="A,B",
        help="with --refresh: parameters that take their default again instead of the published value",
    )


def defaults_of(unset: Sequence[str], given: Collection[str]) -> dict[str, Any]:
    """The defaults of the parameters ``unset``. BadInputError for one that does not exist, or that is ``given`` too."""
    for name in unset:
        if name not in PARAMETERS:
            raise BadInputError(f"--unset {name}: there is no such parameter", "docs/parameters.md lists them")
        if name in given:
            raise BadInputError(f"--unset {name} and {PARAMETERS[name].flag} are both given", "leave out one of them")
    return {name: PARAMETERS[name].default for name in unset}
