"""Answers HTTP requests for the neighbours of embeddings, tokens or texts, in the protocol of the original's retriever.

``GET /health``, and ``POST /query?k=4`` with a ``.npy`` array or JSON. It reaches no further than this machine unless
``--host`` says so: it has no authentication.
"""

import logging
from argparse import ArgumentParser, Namespace

from retro_ops.errors import ConfigurationError
from retro_ops.execution.flags import add_place
from retro_ops.execution.plan_files import read_plan
from retro_ops.plan.parameters import Parameters
from retro_ops.plan.plan import SPLITS
from retro_ops.plan.series import Series
from retro_ops.progress import say
from retro_ops.versions import history, leases

PORT = 8000
"""That of the original's client."""


def add_arguments(parser: ArgumentParser) -> None:
    add_place(parser)
    parser.add_argument("--version", type=int, help="number of a version (default: the current one)")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="split to search (default: train)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"port to listen on; 0 takes a free one (default {PORT})"
    )
    parser.add_argument("--no-lease", action="store_true", help="do not protect the version from `prune`")


def run(arguments: Namespace, parameters: Parameters) -> None:
    root = arguments.root.rstrip("/")
    if arguments.no_lease:
        held, series = None, history.read(root, arguments.dataset)
    else:
        held, series = leases.take(root, arguments.dataset, arguments.version)
    try:
        entry = series.entry(arguments.version if arguments.no_lease else None)
        _serve(arguments, parameters, series, entry["version"])
    finally:
        if held:
            held.close()


def _serve(arguments: Namespace, parameters: Parameters, series: Series, version: int) -> None:
    from retro_ops.serving.http_server import Server, is_loopback
    from retro_ops.serving.neighbours import ServedVersion

    say(f"serve: loading version {version} of {arguments.dataset}: its model and its index")
    plan_uri = series.plan_uri(version)
    of_run = series.run_uri(version) or plan_uri
    served = ServedVersion(read_plan(plan_uri), of_run, arguments.split, parameters)
    about = {"dataset": arguments.dataset, "version": version, "split": arguments.split}
    about |= {"chunks": served.total, "dimension": served.dimension, "chunk_size": served.chunk_size}
    try:
        server = Server((arguments.host, arguments.port), served, about)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot listen on {arguments.host}:{arguments.port}: {error}", "choose another --port or --host"
        ) from error
    with server:
        port = server.server_address[1]
        if not is_loopback(arguments.host):
            say(
                "serve: every machine that reaches this one can query it, without authentication",
                logging.WARNING,
                event="open_to_all",
            )
        say(
            f"serve: version {version} of {arguments.dataset}, searched on {served.device.chosen} "
            f"({served.device.why}): http://{arguments.host}:{port}/query?k=4",
            event="listening",
            port=port,
        )
        server.serve_forever()
