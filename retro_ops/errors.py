"""Errors that a user can act on, and the exit code that tells Airflow whether to retry.

The codes are those of BSD's ``sysexits.h``. Any other non-zero code (an unexpected exception, a
kill by the kernel) may be a passing trouble, so it is retried.
"""

EXIT_OK = 0
EXIT_USAGE = 2
"""argparse's own code for a command line that does not parse."""
EXIT_BAD_INPUT = 65
EXIT_TRANSIENT = 75
EXIT_CONFIGURATION = 78

EXIT_CODES_WITHOUT_RETRY = frozenset({EXIT_USAGE, EXIT_BAD_INPUT, EXIT_CONFIGURATION})


class RetroError(Exception):
    """Base of the errors this package raises on purpose: what is wrong and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  What to do: {hint}" if hint else message)


class BadInputError(RetroError):
    """The data or the parameters are wrong: the same run would fail again."""

    exit_code = EXIT_BAD_INPUT


class ConfigurationError(RetroError):
    """The machine or the deployment lacks something (a GPU, a model, credentials)."""

    exit_code = EXIT_CONFIGURATION


class TransientError(RetroError):
    """Trouble outside that may pass (network, store): the same run may succeed later."""

    exit_code = EXIT_TRANSIENT
