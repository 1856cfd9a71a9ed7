"""Checks that a store does what publishing rests on, before any work is done."""

import time
import uuid

from retro_ops.errors import ConfigurationError, RetroError
from retro_ops.storage import store
from retro_ops.storage.base import ConflictError, Store
from retro_ops.storage.s3 import S3Store
from retro_ops.storage.s3_client import CHECKSUMS
from retro_ops.uris import join

FOLDER = "probe"
LEFTOVER_S = 3600
"""Age from which an object of a check is taken for one of a process that was killed."""


def check_writes(folder: str) -> None:
    """Write a small object below ``folder``, under conditions that hold and that do not, and delete it.

    Raises ConfigurationError, with the reason, if the store refuses writes, or ignores their conditions: then two runs
    could publish over each other. Local folders, which are locked instead, are not checked.
    """
    if "://" not in folder:
        return
    uri = join(folder, FOLDER, uuid.uuid4().hex)
    where = store.at(uri)
    _clean_leftovers(where, join(folder, FOLDER))
    try:
        _check(where, uri)
    finally:
        _clean(where, uri)


def _check(where: Store, uri: str) -> None:
    try:
        where.write_if(uri, b"1", None)
    except ConfigurationError as error:
        raise _refusal(where, uri, error) from error
    if _writes(where, uri, None):
        raise _ignored(uri, "If-None-Match")
    tagged = where.read_tagged(uri)
    assert tagged
    where.write_if(uri, b"2", tagged[1])
    if _writes(where, uri, tagged[1]):
        raise _ignored(uri, "If-Match")


def _writes(where: Store, uri: str, tag: str | None) -> bool:
    """Whether the store writes under a condition that does not hold."""
    try:
        where.write_if(uri, b"3", tag)
    except ConflictError:
        return False
    return True


def _ignored(uri: str, header: str) -> ConfigurationError:
    return ConfigurationError(
        f"the store of {uri} ignores {header}, so two runs could publish over each other",
        "use a store with conditional writes: S3, or a server that implements If-Match and If-None-Match of PutObject",
    )


def _refusal(where: Store, uri: str, error: ConfigurationError) -> ConfigurationError:
    """``error``, or its cause if that is not what the store says."""
    if not isinstance(where, S3Store):
        return error
    if where.accepts(uri, checksums=False, conditional=True):
        return ConfigurationError(
            f"the store refuses the checksums that this client sends with {uri}, and accepts the same without",
            f"set {CHECKSUMS} for every process that uses the store",
        )
    if where.accepts(uri, checksums=True, conditional=False):
        return ConfigurationError(
            f"the store refuses conditional writes, which publishing needs: {error}",
            "use a store that implements If-Match and If-None-Match of PutObject",
        )
    return error


def _clean_leftovers(where: Store, folder: str) -> None:
    try:
        found = where.objects(folder)
    except RetroError:  # The check says why.
        return
    for left in found:
        if left.modified < time.time() - LEFTOVER_S:
            _clean(where, left.uri)


def _clean(where: Store, uri: str) -> None:
    try:
        where.delete(uri)
    except RetroError:  # The error of the check says more.
        return
