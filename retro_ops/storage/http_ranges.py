"""Reads ranges of files on web servers, with retries; the proxies and certificates of the environment count."""

import functools
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from retro_ops.errors import BadInputError, ConfigurationError, RetroError, TransientError
from retro_ops.storage.base import missing
from retro_ops.storage.read_ahead import LOOKUPS

ATTEMPTS = 6
"""Attempts at a range, with pauses of 31 seconds in all, as the connection may break while it is read."""

SEVERAL_AGAIN = (408, 429, 500, 502, 503, 504)


def fetch(uri: str, url: str, start: int, length: int, headers: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """Bytes from ``start`` on, at most ``length``, and the length of the whole file. ``uri``: its name in errors.

    Credentials in ``headers`` are not sent to another host that the server redirects to. Raises BadInputError if there
    is no such file or the server does not serve ranges, TransientError if it cannot be reached.
    """
    import urllib3

    for attempt in range(ATTEMPTS):
        try:
            return _fetched(uri, url, start, length, dict(headers or {}))
        except (urllib3.exceptions.HTTPError, TransientError) as error:
            refusal = error if isinstance(error, RetroError) else _unreachable(uri, error)
            if not isinstance(refusal, TransientError) or attempt == ATTEMPTS - 1:
                raise refusal from error
            time.sleep(2**attempt)
    raise AssertionError


def _fetched(uri: str, url: str, start: int, length: int, headers: dict[str, str]) -> tuple[bytes, int]:
    asked = {**headers, "Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    response = _pool(_proxy(url)).request("GET", url, headers=asked, preload_content=False)
    try:
        _check_redirects(uri, url, response.retries.history)
        if response.status == 206:
            size_of = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if size_of is None:
                raise BadInputError(f"the server of {uri} sends a range without its place", "download the file")
            return bytes(response.read()), int(size_of[1])
        size = int(response.headers.get("Content-Length", -1))
        if response.status == 416 and start == 0:
            return b"", 0
        if response.status == 200 and start == 0 and 0 <= size <= length:  # It may send a small file whole.
            return bytes(response.read()), size
        raise _refusal(uri, response.status)
    finally:
        response.drain_conn() if response.status in (206, 416) else response.close()
        response.release_conn()


def _check_redirects(uri: str, url: str, history: Iterable[Any]) -> None:
    places = [step.redirect_location for step in history if step.redirect_location]
    if url.startswith("https:") and any(place.startswith("http:") for place in places):
        raise BadInputError(f"the server of {uri} redirects to http, which anyone can change on the way", "use a copy")


def _refusal(uri: str, status: int) -> RetroError:
    if status in (404, 410):
        return missing(uri)
    if status == 200:
        return BadInputError(f"the server of {uri} does not serve ranges", "download the file, and name the copy")
    if status == 416:
        return BadInputError(f"{uri} was truncated", "it was changed: start a new run")
    if status in SEVERAL_AGAIN:
        return TransientError(f"the server of {uri} failed: status {status}", "run the stage again later")
    return ConfigurationError(
        f"the server refused {uri}: status {status}",
        "check the address, and HF_TOKEN for hf://; https:// files are read without credentials",
    )


def _unreachable(uri: str, error: Exception) -> RetroError:
    from urllib3 import exceptions

    cause = error.reason if isinstance(error, exceptions.MaxRetryError) and error.reason else error
    if isinstance(cause, exceptions.SSLError):
        return ConfigurationError(f"cannot trust the server of {uri}: {cause}", "set SSL_CERT_FILE, if it is yours")
    if isinstance(cause, exceptions.LocationValueError):
        return BadInputError(f"{uri!r} is not an address: {cause}", "correct it")
    return TransientError(f"cannot reach the server of {uri}: {cause}", "check the network and run the stage again")


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for ``url``."""
    import urllib.request

    parts = urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


@functools.cache
def _pool(proxy: str | None) -> Any:
    import ssl

    import urllib3

    options: dict[str, Any] = {
        "maxsize": LOOKUPS,
        "timeout": urllib3.Timeout(connect=20, read=60),
        # `fetch` repeats all other failures.
        "retries": urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10),
        "ssl_context": ssl.create_default_context(),
    }
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
