"""Log messages and progress of a stage: text and a bar on a terminal, JSON lines a few times a minute elsewhere."""

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from retro_ops.errors import printable

logger = logging.getLogger("retro_ops")

INTERVAL_S = 10.0


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


LogFormat = Literal["text", "json"]


def configure_logging(log_format: LogFormat | None = None) -> None:
    """Send the messages of this package to stderr; by default as text on a terminal and as JSON lines elsewhere."""
    handler = logging.StreamHandler(sys.stderr)
    is_text = sys.stderr.isatty() if log_format is None else log_format == "text"
    handler.setFormatter(logging.Formatter("%(message)s") if is_text else _JsonLines())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log ``message``; ``fields`` are added to its JSON line."""
    logger.log(level, "%s", printable(message), extra={"fields": fields})


def show(text: str = "") -> None:
    """Print ``text``, a result for the user, to standard output."""
    print(printable(text))


@contextlib.contextmanager
def sign_of_life(stage: str) -> Iterator[None]:
    """Log that ``stage`` is still working whenever nothing was logged for INTERVAL_S, and no bar shows progress."""
    latest = _Latest()
    logger.addHandler(latest)
    started, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(max(0.1, latest.time + INTERVAL_S - time.monotonic())):
            if time.monotonic() >= latest.time + INTERVAL_S and not Progress.bars:
                say(f"{stage}: still working ({time.monotonic() - started:,.0f} s)", event="working", stage=stage)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        logger.removeHandler(latest)


class _Latest(logging.Handler):
    """Knows when the latest message was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.time = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.time = time.monotonic()


class Progress:
    """Counts and reports finished work.

    ``total``: None if it is unknown, which gives no ETA. ``found``: work that an earlier run has done.
    """

    bars: ClassVar[int] = 0
    """Number of bars on the terminal."""

    def __init__(self, stage: str, total: int | None, unit: str, found: int = 0) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._done = self._found = found
        self._said_done: int | None = None
        self._started = time.monotonic()
        self._said = self._started
        self._bar = None
        if sys.stderr.isatty() and not _logs_json():
            from tqdm import tqdm

            Progress.bars += 1
            self._bar = tqdm(total=total, initial=found, unit=f" {unit}", desc=stage)

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= INTERVAL_S:
            self._say()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            Progress.bars -= 1
        elif self._said_done != self._done:
            self._say()

    def _say(self) -> None:
        self._said, self._said_done = time.monotonic(), self._done
        rate = (self._done - self._found) / max(self._said - self._started, 1e-9)
        fields: dict[str, Any] = {"event": "progress", "stage": self._stage, "unit": self._unit}
        fields |= {"done": self._done, "total": self._total, "rate_per_s": round(rate, 3)}
        text = f"{self._stage}: {self._done:,}"
        if self._total is not None:
            share = self._done / self._total if self._total else 1.0
            text += f" of {self._total:,}"
            fields["eta_s"] = round((self._total - self._done) / rate, 1) if rate else None
            text += f" {self._unit} ({share:.0%}), {rate:,.0f}/s"
            if rate and self._done < self._total:
                text += f", {fields['eta_s']:,.0f} s to go"
        else:
            text += f" {self._unit}, {rate:,.0f}/s"
        say(text, **fields)


def _logs_json() -> bool:
    return any(isinstance(handler.formatter, _JsonLines) for handler in logger.handlers)
