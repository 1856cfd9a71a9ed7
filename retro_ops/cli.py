"""``retro-ops <stage>``: the entry point of every container and of work by hand.

With ``--plan`` (and ``--shard``) a stage takes its inputs and outputs from the plan; without it, the flags of the
original scripts name them. Every path is local or ``s3://``.
"""

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FrameType, ModuleType
from typing import Any, get_args

import retro_ops
from retro_ops.compute.device import cores
from retro_ops.errors import EXIT_OK, EXIT_USAGE, BadInputError, ConfigurationError, RetroError, exhausted
from retro_ops.execution.plan_files import check_code, read_plan
from retro_ops.plan.name_lists import split_names
from retro_ops.plan.parameters import PARAMETERS, Parameter, Parameters, Section, read_by
from retro_ops.plan.stage_graph import CODE_VERSIONS, STAGES
from retro_ops.progress import LogFormat, configure_logging, say, sign_of_life
from retro_ops.storage.s3_retries import be_patient

COMMANDS = {
    "build": "run every stage, from a corpus or a plan to a published version",
    **{name: stage.help for name, stage in STAGES.items()},
    "list": "list the published versions of a dataset",
    "diff": "show the differences between two versions",
    "rollback": "make an earlier version the current one",
    "prune": "remove old versions, and files that only they or finished runs use",
    "export": "copy a published version to a folder: the original's files, memory maps of RETRO-pytorch, or Parquet",
    "status": "show which parts of a run or a published dataset are done, missing or damaged",
    "serve": "answer requests for the neighbours of texts, tokens or embeddings over HTTP",
    "show": "print some chunks of a dataset and their nearest neighbours as text",
}
"""All commands, in the order of ``retro-ops --help``: stages in the order of a run, then commands on datasets."""

WITH_PLAN = frozenset(
    name for name, stage in STAGES.items() if stage.name not in ("list-sources", "split-corpus", "plan")
)


class _CommandParser(argparse.ArgumentParser):
    """Reports unknown arguments in the name of the command, with the nearest known flag."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            advice = f"did you mean {near[0]}?" if near else f"`{self.prog} --help` lists the flags"
            self.exit(EXIT_USAGE, f"{self.prog}: error: unknown argument {unknown[0]}; {advice}\n")
        return found, unknown


def _parser(called: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of the command ``called``; the modules of the others are not imported."""
    parser = argparse.ArgumentParser(
        prog="retro-ops", description="Build, refresh and repair RETRO retrieval datasets."
    )
    parser.add_argument("--version", action="version", version=f"retro-ops {retro_ops.__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="command", parser_class=_CommandParser)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == called:
            _add_arguments(command, name)
    return parser


def _add_arguments(command: argparse.ArgumentParser, name: str) -> None:
    module = _module(name)
    command.description = (module.__doc__ or "").replace("``", "")
    module.add_arguments(command)
    if name in WITH_PLAN:
        command.add_argument("--plan", help="plan of the run, which determines inputs and outputs")
        command.add_argument(
            "--shard", type=split_names, metavar="A,B", help="shard of the plan, or several to process in turn"
        )
    command.add_argument(
        "--log-format",
        choices=get_args(LogFormat),
        help="messages on stderr as text or as JSON lines (default: text on a terminal, JSON lines elsewhere)",
    )
    command.add_argument("--verbose", action="store_true", help="accepted for compatibility with the original")
    taken = [PARAMETERS[parameter] for parameter in (PARAMETERS if name in ("build", "plan") else read_by(name))]
    for section in get_args(Section):
        # argparse leaves out groups without a flag.
        group = command.add_argument_group(section)
        for parameter in taken:
            if parameter.section == section:
                _add_flag(group, parameter)


def _add_flag(command: argparse._ArgumentGroup, parameter: Parameter) -> None:
    # Absent unless given, to distinguish a flag from a default.
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(parameter)}
    if parameter.kind == "flag":
        command.add_argument(parameter.flag, action="store_true", **options)
        return
    options |= {"choices": parameter.choices} if parameter.choices else {"type": _type(parameter)}
    command.add_argument(parameter.flag, **options)
    if parameter.name == "device":
        options = {"default": argparse.SUPPRESS, "help": "the original's flag for --device cuda"}
        command.add_argument("--use-gpus", dest="device", action="store_const", const="cuda", **options)


def _help(parameter: Parameter) -> str:
    default = parameter.unset if parameter.default is None else parameter.default
    text = parameter.meaning if default is False else f"{parameter.meaning} (default: {default})"
    return text.replace("`", "'").replace("%", "%%")


def _type(parameter: Parameter) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return parameter.parse(text)
        except BadInputError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _module(stage: str) -> ModuleType:
    name = "build.command" if stage == "build" else f"stages.{stage.replace('-', '_')}"
    return importlib.import_module(f"retro_ops.{name}")


def _parameters(arguments: argparse.Namespace) -> Parameters:
    given = {name: value for name, value in vars(arguments).items() if name in PARAMETERS}
    plan_uri = getattr(arguments, "plan", None)
    if plan_uri is None:
        return replace(Parameters(), **given)
    fixed = [PARAMETERS[name].flag for name in sorted(given) if PARAMETERS[name].decides]
    if fixed:
        raise BadInputError(
            f"{', '.join(fixed)}: fixed by the plan",
            "start another run with it (`plan` or `build` without --plan); what is done is reused",
        )
    plan = read_plan(plan_uri)
    if arguments.stage in CODE_VERSIONS:
        check_code(plan, plan_uri)
    return replace(plan.parameters, **given)


def _stop(number: int, frame: FrameType | None) -> None:
    """Exit in order, so that unfinished uploads are aborted. Process 1 of a container has no default handler."""
    sys.exit(128 + number)


@contextmanager
def _missing_libraries() -> Iterator[None]:
    """Raise ConfigurationError with the extra to install for a missing library: stages need more than retro-ops."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "retro_ops":
            raise
        raise ConfigurationError(
            f"the library {error.name!r} is not installed", "install retro-ops[cpu] or retro-ops[gpu]"
        ) from error


def _configure_libraries() -> None:
    """Set defaults of environment variables that libraries read at import."""
    # Avoids a harmless warning of tokenizers when a worker forks after use.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # OpenMP sees the cores of the machine rather than the quota of the container. Threads that wait actively use up
    # that quota, and beside other processes of a busy machine small searches take ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(argv: Sequence[str] | None = None) -> int:
    words = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    called = next((word for word in words if not word.startswith("-")), None)
    configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    _configure_libraries()
    be_patient()
    try:
        with _missing_libraries():
            arguments = _parser(called).parse_args(words)
            if arguments.log_format:
                configure_logging(arguments.log_format)
            with sign_of_life(arguments.stage) if arguments.stage in STAGES else nullcontext():
                _module(arguments.stage).run(arguments, _parameters(arguments))
    except RetroError as error:
        say(str(error), logging.ERROR, event="failed", exit_code=error.exit_code)
        return error.exit_code
    except Exception as error:
        if lacking := exhausted(error):
            say(str(lacking), logging.ERROR, event="failed", exit_code=lacking.exit_code)
            return lacking.exit_code
        say(f"{called or 'retro-ops'} failed unexpectedly:\n{traceback.format_exc()}", logging.ERROR)
        return 1
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
