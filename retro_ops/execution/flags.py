"""Flags that several commands share."""

from argparse import ArgumentParser


def add_place(parser: ArgumentParser, *, required: bool = True, dataset: str = "name of the dataset") -> None:
    """``--root`` and ``--dataset``; ``dataset``: help of the latter."""
    parser.add_argument("--root", required=required, help="where all datasets are: a folder or s3://bucket/prefix")
    parser.add_argument("--dataset", required=required, help=dataset)
