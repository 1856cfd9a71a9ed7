"""Files of datasets on the Hugging Face hub, read-only: ``hf://datasets/owner/name[@revision]/path``."""

import builtins
import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import unquote

from retro_ops.errors import BadInputError, ConfigurationError, TransientError
from retro_ops.storage import http_ranges
from retro_ops.storage.base import missing
from retro_ops.storage.read_ahead import RangeStream
from retro_ops.storage.read_only import Compared, ReadOnlyStore

LOCATION = re.compile(r"(hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[\w.-]+|[^/]+))?)(?:/(.*))?")


class HubStore(ReadOnlyStore):
    """Files of dataset repositories. HF_ENDPOINT, HF_TOKEN and the other settings of huggingface_hub count.

    The fingerprint of a large file is its SHA-256, so that it equals that of a local copy; ``open`` compares it.
    """

    def __init__(self) -> None:
        self._listed: dict[str, Any] = {}
        """Facts of a listing that no ``fingerprint`` has asked for yet: a corpus of many files is one request."""

    def fetch(self, uri: str, start: int, length: int) -> tuple[bytes, int]:
        from huggingface_hub import get_token, hf_hub_url

        _, repository, revision, path = _parts(uri)
        _check_online(uri)
        url = hf_hub_url(repository, path, repo_type="dataset", revision=revision, endpoint=_endpoint())
        return http_ranges.fetch(
            uri, url, start, length, {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
        )

    def exists(self, uri: str) -> bool:
        return self._facts(uri) is not None

    def size(self, uri: str) -> int:
        return int((self._listed.get(uri) or self._known(uri)).size)

    def fingerprint(self, uri: str) -> str:
        facts = self._listed.pop(uri, None) or self._known(uri)
        return f"sha256:{facts.lfs.sha256}" if facts.lfs else f"git:{facts.blob_id}:{facts.size}"

    def open(self, uri: str) -> IO[bytes]:
        facts = self._known(uri)
        stream = RangeStream(self, uri)
        return io.BufferedReader(Compared(stream, uri, facts.lfs.sha256) if facts.lfs else stream)

    def list(self, folder: str, *, follow_links: bool = False) -> builtins.list[str]:
        from huggingface_hub.errors import EntryNotFoundError

        base, repository, revision, path = _parts(folder)
        options = {"recursive": True, "revision": revision, "repo_type": "dataset"}
        with _hub_errors(folder):
            try:
                entries = list(_api().list_repo_tree(repository, path.rstrip("/") or None, **options))
            except EntryNotFoundError:
                return []
        found = {f"{base}/{entry.path}": entry for entry in entries if hasattr(entry, "blob_id")}
        self._listed |= found
        return sorted(found)

    def _known(self, uri: str) -> Any:
        facts = self._facts(uri)
        if facts is None:
            raise missing(uri)
        return facts

    def _facts(self, uri: str) -> Any | None:
        _, repository, revision, path = _parts(uri)
        if not path:
            return None
        with _hub_errors(uri):
            found = _api().get_paths_info(repository, path, revision=revision, repo_type="dataset")
        return next((entry for entry in found if hasattr(entry, "blob_id")), None)


def _parts(uri: str) -> tuple[str, str, str | None, str]:
    """Repository as a URI, its name, the revision, and the path in it."""
    if not (found := LOCATION.fullmatch(uri)):
        raise BadInputError(
            f"{uri!r} is not a location on the hub", "write hf://datasets/owner/name/path, or owner/name@revision/path"
        )
    revision = unquote(found[3]) if found[3] else None
    return found[1], found[2], revision, found[4] or ""


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _check_online(uri: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConfigurationError(
            f"{uri} cannot be read with HF_HUB_OFFLINE=1", "set HF_HUB_OFFLINE=0 for stages that read hf://"
        )


@contextlib.contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub import errors

    _check_online(uri)
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise BadInputError(
            f"{uri} does not exist, or is private: {type(error).__name__}",
            "check owner, name and revision; set HF_TOKEN for a private or gated dataset",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigurationError(f"the hub refused {uri}: status {status}", "check HF_TOKEN") from error
        raise TransientError(f"the hub failed on {uri}: status {status}", "run the stage again later") from error
    except (OSError, httpx2.HTTPError) as error:
        raise TransientError(f"cannot reach the hub for {uri}: {error}", "check HF_ENDPOINT and the network") from error
