"""Links from tasks to the pages of their run. They follow from the arguments of a stage alone."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from retro_ops.plan import paths
from retro_ops.plan.name_lists import split_names

PREFIX = "/retro"
"""Address of the pages below that of the API server."""

ROUTE = "retro-datasets"
"""Name of the pages in the addresses of Airflow's UI."""

RUN_FILE = re.compile(r"(?P<root>.+)/(?P<dataset>[^/]+)/runs/(?P<run>[^/]+)/[^/]+")


def prefix() -> str:
    """Path of the API server; empty if it is at the top of its host."""
    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")


def absolute(address: str) -> str:
    """``address`` with the host of the API server; empty if that is not configured, or for no address."""
    base = urlsplit(str(conf.get("api", "base_url", fallback="")))
    return f"{base.scheme}://{base.netloc}{address}" if base.netloc and address else ""


def in_airflow(page: str) -> str:
    """Address of ``page``, such as ``/<root>/<dataset>``, within Airflow's UI, which shows it in a frame."""
    return f"{prefix()}/plugin/{ROUTE}{prefix()}{PREFIX}{page}"


def of_run(file: str, page: str = "", **query: str) -> str:
    """Address of a page of the run that has the plan (or list of sources) ``file``; empty if it is of no run."""
    found = RUN_FILE.fullmatch(file)
    if not found:
        return ""
    of_dataset = f"/{paths.root_key(found['root'])}/{found['dataset']}"
    return in_airflow(f"{of_dataset}/runs/{found['run']}{page}{f'?{urlencode(query)}' if query else ''}")


class _RunLink(BaseOperatorLink):
    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        arguments = operator.arguments
        if not isinstance(arguments, Mapping):  # The task failed before its arguments were rendered.
            return ""
        shards = split_names(str(arguments["shard"])) if arguments.get("shard") else []
        return self.address(operator.stage, str(arguments.get("plan") or arguments.get("output") or ""), shards)

    def address(self, stage: str, plan: str, shards: list[str]) -> str:
        raise NotImplementedError


class RunPage(_RunLink):
    name = "Run and shards"

    def address(self, stage: str, plan: str, shards: list[str]) -> str:
        return of_run(plan, "/shards", search=shards[0]) if len(shards) == 1 else of_run(plan)


class Card(_RunLink):
    name = "Dataset card"

    def address(self, stage: str, plan: str, shards: list[str]) -> str:
        return of_run(plan, "/card") if stage in ("describe", "validate", "publish") else ""


class Neighbours(_RunLink):
    name = "Neighbours"

    def address(self, stage: str, plan: str, shards: list[str]) -> str:
        if stage not in ("retrieve-neighbours", "write-specs", "describe", "validate", "publish"):
            return ""
        return of_run(plan, "/neighbours", **({"shard": shards[0]} if shards else {}))


class BadRecords(_RunLink):
    name = "Bad records"

    def address(self, stage: str, plan: str, shards: list[str]) -> str:
        of_one = stage == "tokenize-and-chunk" and len(shards) == 1
        return of_run(plan, "/bad-records", shard=shards[0]) if of_one else ""


BAD_RECORDS = BadRecords()

LINKS = (RunPage(), Card(), Neighbours(), BAD_RECORDS)
