"""Errors that a user can act on, and the exit code that tells Airflow whether to retry.

The codes are those of BSD's ``sysexits.h``. Any other non-zero code (an unexpected exception, a kill by the kernel)
may be a temporary problem, so it is retried.
"""

import errno
import re

EXIT_OK = 0
EXIT_USAGE = 2
"""The code of argparse for an invalid command line."""
EXIT_BAD_INPUT = 65
EXIT_TRANSIENT = 75
EXIT_CONFIGURATION = 78

EXIT_CODES_WITHOUT_RETRY = frozenset({EXIT_USAGE, EXIT_BAD_INPUT, EXIT_CONFIGURATION})


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def printable(text: str) -> str:
    """``text`` for a terminal or a log: control characters escaped, except line ends and tabs, and passwords in URLs
    masked. Names and texts of a corpus could otherwise control the terminal, or hide what is written."""
    masked = _PASSWORD.sub(r"\1***@", text) if "://" in text else text
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], masked)


class RetroError(Exception):
    """Base of the errors that this package raises deliberately, with a message and a hint for the user."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(printable(f"{message}\n  What to do: {hint}" if hint else message))


class BadInputError(RetroError):
    """The data or the parameters are wrong, so the same run would fail again."""

    exit_code = EXIT_BAD_INPUT


class DamagedError(BadInputError):
    """A file that this package wrote is damaged, or is not one of its files."""


class ConfigurationError(RetroError):
    """The machine or the deployment lacks something (a GPU, a model, credentials)."""

    exit_code = EXIT_CONFIGURATION


class TransientError(RetroError):
    """A temporary problem outside this package (network, store); the same run may succeed later."""

    exit_code = EXIT_TRANSIENT


def exhausted(error: BaseException, uri: str | None = None) -> TransientError | None:
    """What the machine lacks, if that is why ``error`` (at ``uri``) was raised: space, file handles or memory."""
    code = error.errno if isinstance(error, OSError) else None
    where = uri or getattr(error, "filename", None) or "a file"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return TransientError(
            f"no space left to write {where}", "free some space and run the stage again; finished outputs are kept"
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return TransientError(
            f"too many open files, at {where}", "raise the limit (`ulimit -n 4096`) and run the stage again"
        )
    if isinstance(error, MemoryError) or code == errno.ENOMEM or "can't start new thread" in str(error):
        return TransientError(
            f"no memory left: {error}" if str(error) else "no memory left",
            "give the stage more memory, or a smaller --memory-budget or --batch-size, and run it again",
        )
    return None


def require_flags(arguments: object, *names: str, remedy: str) -> None:
    """Raise BadInputError that lists the flags among ``names`` (``index_spec``) without a value in ``arguments``."""
    missing = [f"--{name.replace('_', '-')}" for name in names if not getattr(arguments, name)]
    if missing:
        raise BadInputError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing", remedy)
