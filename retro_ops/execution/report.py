"""Runs a stage once and writes its report: counts, outputs with checksums, parameters, time and memory.

The report is written last. An output without a valid report does not count as done.
"""

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict

import retro_ops
from retro_ops import uris
from retro_ops.compute.device import Device
from retro_ops.errors import BadInputError
from retro_ops.execution.checkpoints import Checkpoints
from retro_ops.plan import documents, paths
from retro_ops.progress import say
from retro_ops.sizes import of_key
from retro_ops.storage import store
from retro_ops.storage.base import Written
from retro_ops.uris import parent, relative, resolve

REPORTED_PACKAGES = ("numpy", "tokenizers", "transformers", "sentence_transformers", "torch", "faiss", "boto3")


@dataclass(frozen=True)
class Outcome:
    """The result of a stage, for its report."""

    counts: Mapping[str, int]
    outputs: Sequence[Written]
    identity: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    device: Device | None = None


def run_once(
    stage: str,
    uri: str,
    digest: str,
    parameters: Mapping[str, Any],
    inputs: Sequence[str],
    work: Callable[[], Outcome],
    unfinished: Checkpoints | None = None,
) -> dict[str, Any]:
    """Do ``work`` unless the report at ``uri`` says that it was done for the same ``digest``. Returns the report.

    A kill before the report is written leaves no finished output, but perhaps the checkpoints ``unfinished`` to resume
    from. They are deleted once the report is written.
    """
    done = read(uri)
    if done is not None and done["digest"] == digest and lost_output(done) is None:
        say(f"{stage}: already done, see {uri}", event="already_done", report=uri)
        if unfinished:
            unfinished.delete()  # Left by a run that was killed just after writing its report.
        return done
    if done is not None:
        store.at(uri).delete(uri)
    say(f"{stage}: started", event="started", stage=stage)
    started_at, start = datetime.now(UTC), time.monotonic()
    outcome = work()
    report = {
        "stage": stage,
        "digest": digest,
        "version": retro_ops.__version__,
        "started_at": started_at.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - start, 3),
        "image": os.environ.get("RETRO_IMAGE"),  # Set by the container runtimes; includes the image digest.
        "device": asdict(outcome.device) if outcome.device else None,
        "counts": dict(outcome.counts),
        "identity": dict(outcome.identity),
        "details": dict(outcome.details),
        "parameters": dict(parameters),
        "inputs": list(inputs),
        # Relative to the report, so that the checksums stay valid when the dataset is moved or copied.
        "outputs": [_as_json(written, uri) for written in outcome.outputs],
        "peak_rss_bytes": peak_rss_bytes(),
        "packages": _package_versions(),
    }
    store.write(uri, sealed(report))
    figures = ", ".join(of_key(value, name) for name, value in outcome.counts.items())
    say(f"{stage}: done in {report['seconds']:.1f} s: {figures}", event="done", report=uri)
    if unfinished:
        unfinished.delete()
    return report


def _as_json(written: Written, report_uri: str) -> dict[str, Any]:
    entry = {**asdict(written), "uri": relative(written.uri, parent(report_uri))}
    return {key: value for key, value in entry.items() if value is not None}


SEAL = "sha256"


class _Output(TypedDict):
    uri: str
    bytes: int
    sha256: str
    tag: NotRequired[str]


class _Report(TypedDict):
    """What is read of a report."""

    digest: str
    outputs: list[_Output]
    seconds: float
    counts: dict[str, int]
    identity: dict[str, Any]
    details: dict[str, Any]


def sealed(report: Mapping[str, Any]) -> bytes:
    """``report`` as stored: JSON whose last key is the SHA-256 of the document without that key."""

    def as_json(document: Mapping[str, Any]) -> bytes:
        return (json.dumps(document, indent=1) + "\n").encode()

    return as_json({**report, SEAL: hashlib.sha256(as_json(report)).hexdigest()})


def read(uri: str) -> dict[str, Any] | None:
    """The report at ``uri``, with absolute output URIs; None if the stage is not done.

    Raises BadInputError if the report is damaged.
    """
    stored = store.at(uri).read_tagged(uri)  # One request instead of ``exists`` and ``read``.
    if stored is None:
        return None
    data = stored[0]
    report: dict[str, Any] = documents.read(data, uri, _Report, "delete it, then run the stage again")
    if sealed({key: value for key, value in report.items() if key != SEAL}) != data:
        raise BadInputError(f"{uri} was modified after its stage wrote it", "delete it, then run the stage again")
    for output in report["outputs"]:
        output["uri"] = resolve(output["uri"], uri)
    return report


def require(uri: str, what: str) -> dict[str, Any]:
    """The report at ``uri``. Raises BadInputError if it does not exist; ``what`` names the stage in the message."""
    report = read(uri)
    if report is None:
        raise BadInputError(f"{what} is not done: {uri} does not exist", "run that stage first")
    return report


def check_unchanged(uri: str) -> None:
    """Raise BadInputError unless ``uri`` has the checksum that the report in its folder says. Reads the whole file.

    Needed before a file is copied into another output, whose own checksum would then cover the damage.
    """
    done = require(uris.join(parent(uri), paths.REPORT), f"the stage that writes {uri}")
    name = uri.rpartition("/")[2]
    expected = [output["sha256"] for output in done["outputs"] if output["uri"].rpartition("/")[2] == name]
    if not store.exists(uri) or expected != [store.sha256(uri)]:
        raise BadInputError(
            f"{uri} was modified after its stage wrote it",
            "repair the dataset: trigger retro_repair, or `retro-ops plan --repair`",
        )


def check_same_identity(reports: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """The identity (tokenizer, model, …) that all ``reports`` share. Missing reports are skipped.

    Raises BadInputError that names two outputs that do not belong together.
    """
    agreed: dict[str, tuple[Any, str]] = {}
    for uri, report in reports.items():
        for key, value in (report or {}).get("identity", {}).items():
            known, where = agreed.setdefault(key, (value, uri))
            if known != value:
                raise BadInputError(
                    f"{where} and {uri} do not belong together: {key} is {known!r} in one and {value!r} in the other",
                    "build both with the same tokenizer, model and chunk size",
                )
    return {key: value for key, (value, _) in agreed.items()}


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far."""
    with contextlib.suppress(FileNotFoundError), open("/proc/self/status") as status:
        # On Linux, getrusage starts from the size of the parent process, so prefer VmHWM where the kernel has it.
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def lost_output(report: Mapping[str, Any], sizes: Mapping[str, int] | None = None) -> tuple[str, str] | None:
    """URI of the first output that is missing or has a wrong length, and which of the two; or None.

    ``sizes``: known lengths from a listing; other files cost one request each.
    """
    for output in report["outputs"]:
        uri = str(output["uri"])
        try:
            known = (sizes or {}).get(uri)
            found = store.at(uri).size(uri) if known is None else known
        except BadInputError:
            return uri, "is missing"
        if found != output["bytes"]:
            return uri, f"has {found:,} bytes, but its stage wrote {output['bytes']:,}"
    return None


def changed_output(report: Mapping[str, Any]) -> str | None:
    """URI of the first output whose checksum differs from the report, or None. Reads all outputs."""
    return next((str(o["uri"]) for o in report["outputs"] if store.sha256(str(o["uri"])) != o["sha256"]), None)


def _package_versions() -> dict[str, str]:
    """Versions of the loaded packages, from ``__version__``, since searching the installed metadata takes seconds."""
    versions = {package: getattr(sys.modules.get(package), "__version__", None) for package in REPORTED_PACKAGES}
    return {
        "python": sys.version.split()[0],
        **{package: str(version) for package, version in versions.items() if version},
    }
